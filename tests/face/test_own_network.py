"""A torch.nn.Module of the user's own, by the face alone: trained, resumed, kept, sampled, evaluated and swept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import edm_ray as edm
from tests.face.conftest import TINY, convnet
from tests.face.user_program import ConvNet

SEEDS = torch.arange(60)
FEW = edm.Heun(num_steps=4)


class Unlabelled(nn.Module):
    """Says nothing of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        assert class_labels is None
        return self.conv(x)


def weights(model: edm.ModelDenoiser) -> list[torch.Tensor]:
    return list(model.module.state_dict().values())


def test_training_moves_its_weights_and_gives_a_denoiser(own_run) -> None:
    _, model = own_run
    assert model.shape == (1, 8, 8) and model.label_dim == 10 and model.module.model.first.weight.shape[0] == 8
    fresh = convnet().state_dict()
    moved = [not torch.equal(value, fresh[name.removeprefix("model.")]) for name, value in own_state(model).items()]
    assert all(moved)


def own_state(model: edm.ModelDenoiser) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.module.state_dict().items() if name.startswith("model.")}


def test_the_module_that_is_passed_is_what_training_starts_from(own_run, digits_dir: Path, tmp_path: Path) -> None:
    _, model = own_run
    other = edm.train(str(digits_dir / "train"), "tiny", str(tmp_path / "run"), network=convnet(seed=1), overrides=TINY)
    assert not all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(own_run, digits_dir: Path, tmp_path: Path) -> None:
    """Stopped after its first checkpoint; the call that resumes may pass a module of any weights."""

    class Stop(Exception):
        pass

    def stop(row) -> None:
        if row["nimg"] >= 96:
            raise Stop

    data, out = str(digits_dir / "train"), str(tmp_path / "run")
    with pytest.raises(Stop):
        edm.train(data, "tiny", out, network=convnet(), overrides=TINY, on_tick=stop)
    ticks: list[int] = []
    again = lambda row: ticks.append(row["nimg"])  # noqa: E731
    resumed = edm.train(data, "tiny", out, network=convnet(seed=7), overrides=TINY, on_tick=again)
    assert ticks == [96]
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(own_run[1]), strict=True))


def test_it_loads_with_a_module_of_its_class_whatever_that_holds(own_run) -> None:
    out, model = own_run
    loaded = edm.load_model(f"{out}/model", network=convnet(seed=3))
    assert all(torch.equal(a, b) for a, b in zip(weights(loaded), weights(model), strict=True))
    assert torch.equal(edm.generate(loaded, SEEDS, FEW), edm.generate(model, SEEDS, FEW))


@pytest.mark.parametrize("use", [edm.load_model, lambda place: edm.generate(place, SEEDS, FEW)])
def test_without_the_module_the_error_says_how_to_pass_it(own_run, use) -> None:
    with pytest.raises(
        edm.InputError, match=r"your own class tests.face.user_program.ConvNet: pass the module, edm.load"
    ):
        use(f"{own_run[0]}/model")


def test_images_depend_on_their_seeds_alone(own_run) -> None:
    _, model = own_run
    all_at_once = edm.generate(model, SEEDS, edm.Heun(num_steps=4, s_churn=2.0))
    assert all_at_once.shape == (60, 1, 8, 8) and all_at_once.dtype == torch.uint8
    assert torch.equal(edm.generate(model, [7, 33], edm.Heun(num_steps=4, s_churn=2.0)), all_at_once[[7, 33]])


def test_it_is_evaluated_and_the_number_is_that_of_its_images(own_run, reference) -> None:
    _, model = own_run
    result = edm.evaluate(model, reference, FEW, num=100)
    assert result.fid.n == 100 and result.fid.fid > 0
    first = 1 << 31  # where seeds of evaluations begin
    assert float(edm.fid(edm.generate(model, range(first, first + 100), FEW), reference)) == result.fid.fid


def test_it_is_swept(own_run, reference, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("name: own\nsampler: {num_steps: 4}\nsearch:\n  churn_fraction: {low: 0.0, high: 1.0}\n")
    plan = edm.sweep_plan("random", num_global=2, max_chunks=1, chunk_size=100, confirm_chunks=2)
    found = edm.sweep(own_run[1], reference, str(space), str(tmp_path / "sweep"), plan=plan, grid=10)
    assert isinstance(found.best, edm.Heun) and found.table and Path(found.report).exists()
    again = edm.sweep(own_run[1], reference, str(space), str(tmp_path / "sweep"), plan=plan, grid=10)
    assert again.table == found.table


def test_a_module_without_a_number_of_classes_is_unconditional_and_that_is_printed(
    digits_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The data set has ten classes, so it may have been forgotten."""
    data = str(digits_dir / "train")
    model = edm.train(data, "tiny", str(tmp_path / "run"), network=Unlabelled(), overrides=TINY)
    assert model.label_dim == 0
    [said] = [record.getMessage() for record in caplog.records if record.name == "edm_ray.tasks.train"]
    assert "Unlabelled has no label_dim, so the model is unconditional although" in said and "has 10 classes" in said
    assert edm.generate(model, SEEDS[:2], FEW).shape == (2, 1, 8, 8)


def test_a_saved_denoiser_gives_the_same_images(tmp_path: Path) -> None:
    class MyNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
            return self.conv(x) * noise_labels.reshape(-1, 1, 1, 1)

    denoiser = edm.EDM(MyNet(), sigma_data=0.5)
    with pytest.raises(edm.InputError, match=r"does not say img_channels and img_resolution; give shape=\(C, H, W\)"):
        edm.save_model(str(tmp_path / "model"), denoiser)
    place = edm.save_model(str(tmp_path / "model"), denoiser, shape=(3, 16, 16), trained_on="noise")
    with pytest.raises(edm.InputError, match=r"your own class .*MyNet: pass the module"):
        edm.load_model(place)
    loaded = edm.load_model(place, network=MyNet())
    assert loaded.shape == (3, 16, 16)
    latents = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(edm.sample(loaded, latents, FEW), edm.sample(denoiser, latents, FEW))


@pytest.mark.parametrize("kind", ["EDM", "VP", "VE", "IDDPM"])
def test_every_preconditioning_around_it_is_kept(tmp_path: Path, kind: str) -> None:
    denoiser = getattr(edm, kind)(convnet())
    loaded = edm.load_model(edm.save_model(str(tmp_path / "model"), denoiser), network=convnet(seed=1))
    assert type(loaded.module) is type(denoiser)
    latents, labels = torch.randn(2, 1, 8, 8), torch.eye(10)[:2]
    with torch.no_grad():
        assert torch.equal(edm.sample(loaded, latents, FEW, labels), edm.sample(denoiser, latents, FEW, labels))


def test_a_preset_with_changes_is_a_configuration(digits_dir: Path, tmp_path: Path) -> None:
    data = edm.open_dataset(str(digits_dir / "train"))
    config = dataclasses.replace(edm.preset("tiny", data), total_kimg=0.048, tick_kimg=0.048)
    model = edm.train(data, config, str(tmp_path / "run"), network=convnet())
    assert model.source.about["dataset"] == data.name


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"label_dim": 3}, r"label_dim=3, but .* has 10 classes; give that number, or 0"),
        ({"forward": lambda self, x: x}, r"does not take network\(x, noise_labels, class_labels, augment_labels\)"),
        ({"forward": lambda self, x, n, c=None, a=None: x[:, :, :4]}, r"returns \(1, 1, 4, 8\) for images"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_before_anything_is_written(
    digits_dir: Path, tmp_path: Path, attributes: dict, says: str
) -> None:
    network = type("Wrong", (ConvNet,), attributes)()
    with pytest.raises(edm.InputError, match=says):
        edm.train(str(digits_dir / "train"), "tiny", str(tmp_path / "run"), network=network, overrides=TINY)
    assert not (tmp_path / "run").exists()
