"""Power-function averages, and averages of any width made from their snapshots."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.integrate import quad

from edm_ray.cli import main
from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data.manifest import open_dataset
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.training.ema import gamma_of, power_beta
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.posthoc import combination, profile_product, save_snapshot, synthesise
from edm_ray.training.run import claim_run


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.25])
def test_the_profile_has_the_width_asked_for(sigma_rel):
    gamma = gamma_of(sigma_rel)
    mean = quad(lambda t: t * (gamma + 1) * t**gamma, 0, 1)[0]
    variance = quad(lambda t: (t - mean) ** 2 * (gamma + 1) * t**gamma, 0, 1)[0]
    assert np.sqrt(variance) == pytest.approx(sigma_rel, rel=1e-6)


def test_the_widths_of_the_paper_have_its_exponents():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01) and gamma_of(0.10) == pytest.approx(6.94, abs=0.01)


def test_inner_products_are_the_integrals():
    for a, b in (((3.0, 6.94), (2.0, 16.97)), ((1.0, 0.5), (1.0, 2.0)), ((500.0, 16.97), (800.0, 16.97))):
        exact = quad(
            lambda t, a=a, b=b: (a[1] + 1) * (b[1] + 1) * (t / a[0]) ** a[1] * (t / b[0]) ** b[1] / (a[0] * b[0]),
            0,
            min(a[0], b[0]),
        )[0]
        assert profile_product(a, b) == pytest.approx(exact, rel=1e-6)


def test_a_profile_that_is_there_is_found_exactly():
    have = [(float(t), gamma_of(width)) for t in (100, 200, 300) for width in (0.05, 0.1)]
    weights = combination(have, have[3])
    assert weights == pytest.approx([0, 0, 0, 1, 0, 0], abs=1e-8)


class _Path(torch.nn.Module):
    """Parameters that wander smoothly over training, with a constant buffer beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("constant", torch.tensor([1 / 3]))


def test_an_average_made_afterwards_is_the_one_that_was_tracked(tmp_path):
    """Error of the reconstruction under 1 % of what the two stored widths differ by; constants to the last bit."""
    steps, widths, wanted = 400, (0.05, 0.10), 0.075
    averages = {width: _Path() for width in (*widths, wanted)}
    for step in range(1, steps + 1):
        t = step / steps
        now = torch.tensor([t, np.sin(5 * t), np.exp(-3 * t)], dtype=torch.float64)
        for width, average in averages.items():
            average.weight.data.lerp_(now, 1 - power_beta(gamma_of(width), step))
        if step % 25 == 0:
            save_snapshot(str(tmp_path), step, {width: averages[width].state_dict() for width in widths})
    state, at = synthesise(str(tmp_path), wanted)
    spread = (averages[0.05].weight - averages[0.10].weight).abs()
    error = (state["weight"] - averages[wanted].weight).abs()
    assert at == steps and bool((error < 0.01 * spread).all())
    assert torch.equal(state["constant"], torch.tensor([1 / 3]))


def test_float16_snapshots_take_half_the_bytes_and_change_little(tmp_path):
    """Relative error of the parameters under 5e-4; what float16 cannot hold stays as it is."""
    states, made = {}, {}
    for moment in (100, 200):
        generator = torch.Generator().manual_seed(moment)
        weight = torch.randn(2000, generator=generator)
        states[moment] = {w: {"weight": weight * (1 + w), "large": torch.full((1,), 1e6)} for w in (0.05, 0.10)}
    for dtype in (torch.float32, torch.float16):
        run = str(tmp_path / str(dtype))
        for moment, averages in states.items():
            save_snapshot(run, moment, averages, dtype)
        made[dtype], _ = synthesise(run, 0.07)
    full, half = made[torch.float32], made[torch.float16]
    assert half["weight"].dtype == torch.float32 and torch.equal(half["large"], torch.full((1,), 1e6))
    error = float((half["weight"] - full["weight"]).norm() / full["weight"].norm())
    assert 0 < error < 5e-4
    sizes = [sum(f.stat().st_size for f in (tmp_path / str(d)).rglob("*.safetensors")) for d in made]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_trained_run_gives_models_of_other_widths_and_the_stored_width_is_the_stored_average(digits_dir, tmp_path):
    dataset, run = open_dataset(str(digits_dir / "train")), str(tmp_path / "run")
    config = configure(tiny(dataset.shape), None, ["ema.sigma_rels=[0.05, 0.1]", "ema.snapshot_kimg=0.048"])
    claim_run(run, config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=run))
    assert main(["ema", run, str(tmp_path / "wide"), "--sigma-rel", "0.1"]) == 0
    model = open_model(str(tmp_path / "wide"))
    assert (model.about["ema_sigma_rel"], model.about["images_seen"]) == (0.1, 240)
    # What the run says of its own average is not said of this one.
    assert "metrics" in open_model(f"{run}/model").about and "metrics" not in model.about
    stored = safetensors.torch.load_file(
        tmp_path / "run" / "ema-snapshots" / "nimg-000000000240" / "sigma_rel-0.1.safetensors"
    )
    made = safetensors.torch.load(model.weights)
    assert all(torch.allclose(made[name], tensor, atol=1e-6) for name, tensor in stored.items())
    with pytest.raises(InputError, match=r"allows 0\.05 to 0\.1"):
        synthesise(run, 0.2)


def test_a_run_without_snapshots_says_how_to_get_them(tmp_path):
    with pytest.raises(InputError, match=r"ema.sigma_rels='\[0.05, 0.10\]'"):
        synthesise(str(tmp_path), 0.05)
