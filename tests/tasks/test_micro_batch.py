"""How many images the network sees at once, and in which precision: what a user of a GPU gives to be quick."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import edm_ray as edm
from edm_ray.errors import InputError
from edm_ray.generation import features
from tests.tasks.small_sweep import PLAN, SPACE


def test_it_moves_an_fid_by_rounding_only(model, digits_reference) -> None:
    sampler = edm.sampler(num_steps=3)
    few, many = (
        edm.evaluate(model, digits_reference, sampler, 200, labels="balanced", micro_batch=size) for size in (50, 200)
    )
    fids = [each.sets[0][0].measured.fid.fid for each in (few, many)]
    assert fids[1] == pytest.approx(fids[0], rel=1e-3)
    assert (few.to_dict()["micro_batch"], many.to_dict()["micro_batch"]) == (50, 200)


def test_a_sweep_samples_as_it_is_told(model, digits_reference, tmp_path, monkeypatch) -> None:
    """Its numbers; the pictures of its report are drawn as `generate` draws them."""
    space, seen, generate = tmp_path / "space.yaml", set(), features.generate
    space.write_text(SPACE)

    def watched(denoiser, seeds, sampler, labels, micro_batch, precision):
        seen.add((len(seeds), micro_batch, precision))
        return generate(denoiser, seeds, sampler, labels, micro_batch, precision)

    monkeypatch.setattr(features, "generate", watched)
    out = tmp_path / "sweep"
    how = {"precision": "bf16", "micro_batch": 100}
    edm.sweep(model, digits_reference, str(space), str(out), plan=PLAN, grid=10, **how)
    assert seen == {(100, 100, "bf16"), (50, 50, "bf16")}
    found = yaml.safe_load(Path(out, "best-sampler.yaml").read_text())["found_by"]
    assert found["precision"] == "bf16"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"micro_batch": 101}, "--micro-batch 101: give 1 to 100"),
        ({"micro_batch": 0}, "--micro-batch 0: give 1 to 100"),
        ({"precision": "fp8"}, "--precision fp8: give fp32, bf16, fp16"),
    ],
)
def test_what_no_chunk_holds_is_refused_before_anything_is_written(
    model, digits_reference, tmp_path, options, says
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    with pytest.raises(InputError, match=says):
        edm.sweep(model, digits_reference, str(tmp_path / "space.yaml"), str(tmp_path / "out"), plan=PLAN, **options)
    assert not (tmp_path / "out").exists()
