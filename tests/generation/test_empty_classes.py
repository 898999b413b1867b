"""A class without pictures is not trained for, and is drawn only when it is asked for by its number."""

from __future__ import annotations

import json

import pytest
import torch

from edm_ray.config.load import to_flat
from edm_ray.data.manifest import open_dataset
from edm_ray.distributed.shipping import ShippedModel
from edm_ray.generation.generate import labels_of
from edm_ray.models.directory import open_model, save_model
from edm_ray.tasks.train import TrainOptions, plan_train
from tests.data.sources import picture, pixels_of, put

SEEDS = torch.arange(400)


@pytest.mark.parametrize("empty", [(), (0,), (0, 3), (1, 2, 3)])
@pytest.mark.parametrize("policy", ["random", "balanced"])
def test_labels_are_drawn_from_the_classes_that_have_pictures(policy, empty):
    labels = labels_of(SEEDS, 5, policy, empty)
    assert sorted(labels.unique().tolist()) == [c for c in range(5) if c not in empty]
    if not empty:
        assert torch.equal(labels, labels_of(SEEDS, 5, policy))


def test_an_empty_class_that_is_asked_for_is_drawn():
    assert labels_of(SEEDS, 5, "0", (0,)).unique().tolist() == [0]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """40 pictures of the classes 1 to 10, as people number them."""
    from edm_ray.cli import main

    place = tmp_path_factory.mktemp("from one")
    for i, image in enumerate(pixels_of(40, 1, 8)):
        put(place / "in" / f"{i}.png", picture(image))
    rows = [[f"{i}.png", 1 + i % 10] for i in range(40)]
    put(place / "in" / "dataset.json", json.dumps({"labels": rows}).encode())
    assert main(["prepare", str(place / "in"), str(place / "out")]) == 0
    return open_dataset(str(place / "out"))


def test_inspect_says_which_classes_are_empty(dataset, capsys):
    from edm_ray.cli import main

    assert main(["inspect", dataset.uri]) == 0
    assert "1 class without pictures (0): not trained, and drawn only if you ask for it" in capsys.readouterr().out


def test_a_model_knows_the_classes_it_was_not_trained_for_wherever_it_is_built(dataset, tmp_path):
    assert dataset.class_counts[0] == 0 and dataset.empty_classes == (0,)
    job = plan_train(dataset, "tiny", str(tmp_path / "run"), TrainOptions()).job
    assert job.about["empty_classes"] == [0]
    from edm_ray.networks.build import build_denoiser

    state = build_denoiser(job.config.denoiser).state_dict()
    hashes = []
    for name, about in (("with", dict(job.about)), ("without", {"preset": "x"})):
        save_model(str(tmp_path / name), job.config.denoiser, state, about)
        hashes.append(open_model(str(tmp_path / name)).hash)
    model = open_model(str(tmp_path / "with"))
    assert model.empty_classes == model.denoiser().empty_classes == (0,)
    assert ShippedModel.of(model).denoiser("cpu").empty_classes == (0,)
    assert hashes[0] != hashes[1]  # its images of random labels are others
    assert to_flat(model.config) == to_flat(job.config.denoiser)
