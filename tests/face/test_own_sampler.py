"""A sampler of the user's own: it samples, is evaluated here and on Ray, and its images are kept under its source."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import edm_ray as edm
from tests.face.own_samplers import CopiedEuler, NoisyDDIM

ROOT = Path(__file__).parents[2]
SEEDS = torch.arange(8)
SCRIPT = """
import itertools, sys
from dataclasses import dataclass
import edm_ray as edm
{extra}

@dataclass(frozen=True, kw_only=True)
class Mine(edm.Sampler):
    def run(self, D, x, levels, path, noise):
        for now, after in itertools.pairwise(levels):
            x = x + (after - now) * ((x - D(x, now)) / now)
        return x

if __name__ == "__main__":
    print(repr(edm.evaluate(sys.argv[1], sys.argv[2], Mine(num_steps=4), num=100, on={on}).fid.fid))
"""


@pytest.fixture(scope="module")
def model(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Place of a model that needs no class of the user's."""
    out = str(tmp_path_factory.mktemp("model"))
    edm.train(str(digits_dir / "train"), "tiny", f"{out}/run", overrides=["total_kimg=0.048", "tick_kimg=0.048"])
    return f"{out}/run/model"


def test_one_that_copies_an_algorithm_gives_its_images(model: str) -> None:
    denoiser = edm.load_model(model)
    latents, labels = edm.image_noise(SEEDS, "latents", denoiser.shape)(0), edm.one_hot_labels(SEEDS, 10)
    with torch.inference_mode():
        mine = edm.sample(denoiser, latents, CopiedEuler(num_steps=5), labels)
        ours = edm.sample(denoiser, latents, edm.Euler(num_steps=5), labels)
    torch.testing.assert_close(mine, ours, rtol=1e-9, atol=1e-9)
    assert torch.equal(
        edm.generate(denoiser, SEEDS, CopiedEuler(num_steps=5)), edm.generate(denoiser, SEEDS, edm.Euler(num_steps=5))
    )


def test_noise_is_keyed_by_image_and_step_for_it_too(model: str) -> None:
    denoiser, noisy = edm.load_model(model), NoisyDDIM(num_steps=5)
    images = edm.generate(denoiser, SEEDS, noisy)
    assert torch.equal(edm.generate(denoiser, SEEDS[3:5], noisy), images[3:5])
    assert not torch.equal(images, edm.generate(denoiser, SEEDS, NoisyDDIM(num_steps=5, eta=0.5)))
    still = edm.generate(denoiser, SEEDS, NoisyDDIM(num_steps=5, eta=0.0))
    assert torch.equal(still, edm.generate(denoiser, SEEDS, edm.Euler(num_steps=5)))
    latents = torch.randn(2, *denoiser.shape)
    with pytest.raises(edm.InputError, match="adds noise: pass noise="):
        edm.sample(denoiser, latents, noisy)


def test_it_is_evaluated_here_to_the_number_of_the_algorithm_it_copies(model: str, reference) -> None:
    mine = edm.evaluate(model, reference, CopiedEuler(num_steps=4), num=100, on=edm.Local())
    ours = edm.evaluate(model, reference, edm.Euler(num_steps=4), num=100, on=edm.Local())
    assert mine.fid.fid == ours.fid.fid and mine.fid.influence == ours.fid.influence
    assert "CopiedEuler num_steps=4" in mine.describe()


def test_it_has_the_flat_form_where_it_has_a_name() -> None:
    noisy = NoisyDDIM(num_steps=5, eta=0.25)
    assert edm.sampler(**noisy.to_dict()) == noisy == edm.sampler("tests_noisy_ddim", num_steps=5, eta=0.25)
    with pytest.raises(edm.InputError, match=r"solver='heun' is taken by edm_ray.diffusion.samplers.heun.Heun"):
        type("Heun", (NoisyDDIM,), {"solver": "heun"})


def test_a_subclass_without_a_name_is_not_taken_for_its_base() -> None:
    class Warmer(edm.Heun):
        pass

    assert str(Warmer(num_steps=4)) == "Warmer num_steps=4" and Warmer(num_steps=4) != edm.Heun(num_steps=4)
    with pytest.raises(edm.InputError, match=r"sampler.solver='' is not allowed"):
        edm.sampler(**Warmer(num_steps=4).to_dict())
    assert edm.Heun().solver == "heun" and edm.sampler("heun") == edm.Heun()


def module_of(folder: Path, name: str, body: str):
    """A module with this text, imported afresh."""
    (folder / f"{name}.py").write_text(textwrap.dedent(body))
    sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(folder))


VERSION = """
    import edm_ray as edm
    class Base(edm.Sampler):
        def rounded(self, x): return {base}
    class Mine(Base):
        def run(self, D, x, levels, path, noise): return self.rounded({own})
"""


def test_a_changed_class_or_base_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    """The identity of its images holds the source of the class, and of those bases that are the user's."""
    versions = [("x", "D(x, levels[0])"), ("x", "D(x, levels[0]) * 0.5"), ("x.round()", "D(x, levels[0])")]
    made = []
    for number, (base, own) in enumerate([*versions, versions[0]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        made.append(module_of(folder, "my_samplers", VERSION.format(base=base, own=own)).Mine(num_steps=4).identity)
    assert made[0] == made[3] and made[0] != made[1] != made[2] != made[0]
    assert "source" not in edm.Heun().identity


def test_in_a_store_a_changed_class_is_sampled_again(model: str, reference, tmp_path: Path) -> None:
    numbers = []
    for number, own in enumerate(["D(x, levels[0])", "D(x, levels[1])"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        mine = module_of(folder, "my_samplers", VERSION.format(base="x", own=own)).Mine(num_steps=4)
        numbers.append(edm.evaluate(model, reference, mine, num=100, store=str(tmp_path / "store")).fid.fid)
    assert numbers[0] != numbers[1]


def test_a_class_without_a_source_is_refused_in_words(model: str, reference) -> None:
    namespace: dict = {"edm": edm, "__name__": "typed_in"}
    exec("class Mine(edm.Sampler):\n    def run(self, D, x, levels, path, noise): return x", namespace)
    with pytest.raises(edm.InputError, match=r"sampler Mine: its source cannot be read.*define the class in a file"):
        edm.evaluate(model, reference, namespace["Mine"](), num=100)


def script(folder: Path, *arguments: str, on: str, extra: str = "") -> str:
    """What a program with a sampler of its own prints."""
    (folder / "program.py").write_text(SCRIPT.format(on=on, extra=extra))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "program.py", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_script_s_own_class_is_evaluated(model: str, reference, tmp_path: Path) -> None:
    ours = edm.evaluate(model, reference, edm.Euler(num_steps=4), num=100)
    assert script(tmp_path, model, reference.uri, on="edm.Local()") == repr(ours.fid.fid)


@pytest.mark.ray
@pytest.mark.slow
def test_a_script_s_own_class_travels_to_workers(model: str, reference, tmp_path: Path) -> None:
    """By value, as Ray pickles what __main__ defines; the program starts a Ray of its own."""
    ours = edm.evaluate(model, reference, edm.Euler(num_steps=4), num=100)
    assert script(tmp_path, model, reference.uri, on="edm.Ray(workers=1)") == repr(ours.fid.fid)


@pytest.mark.ray
def test_a_class_of_a_module_runs_on_workers_that_can_import_it(ray_session, model: str, reference) -> None:
    noisy = NoisyDDIM(num_steps=4)
    here = edm.evaluate(model, reference, noisy, num=100, on=edm.Local())
    there = edm.evaluate(model, reference, noisy, num=100, on=edm.Ray(workers=1))
    assert here.fid == there.fid


@pytest.mark.ray
def test_a_class_that_workers_cannot_import_is_refused_in_one_line(ray_session, model, reference, tmp_path) -> None:
    mine = module_of(tmp_path, "only_here", VERSION.format(base="x", own="D(x, levels[0])")).Mine(num_steps=4)
    with pytest.raises(edm.InputError, match=r"workers cannot import only_here.*working-dir") as caught:
        edm.evaluate(model, reference, mine, num=100, on=edm.Ray(workers=1))
    assert len(str(caught.value).splitlines()) == 1


SPACE = """
name: own
sampler: {solver: tests_noisy_ddim, num_steps: 4}
search:
  eta: {low: 0.0, high: 1.0}
"""


def test_a_sweep_over_it_runs_here_and_is_refused_on_ray_before_anything_starts(
    model: str, reference, tmp_path: Path
) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    plan = edm.sweep_plan(
        strategy="random", num_global=2, chunk_size=50, initial_chunks=1, max_chunks=1, confirm_chunks=2
    )
    with pytest.raises(edm.InputError, match=r"NoisyDDIM: a sweep over a sampler class of your own runs on edm\.Local"):
        edm.sweep(model, reference, str(file), str(tmp_path / "ray"), plan=plan, on=edm.Ray(workers=1))
    assert not (tmp_path / "ray").exists()
    found = edm.sweep(model, reference, str(file), str(tmp_path / "here"), plan=plan, grid=10)
    assert isinstance(found.best, NoisyDDIM) and len(found.table) >= 2
