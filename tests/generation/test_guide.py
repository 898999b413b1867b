"""A model that guides another: what is read, what is refused, and that chunks and files name it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from edm_ray.cli import main
from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import DDPMpp
from edm_ray.diffusion.samplers import sampler
from edm_ray.distributed.shipping import ShippedModel
from edm_ray.errors import InputError
from edm_ray.generation.generate import generate
from edm_ray.models import open_model
from edm_ray.models.directory import save_model
from edm_ray.networks.build import build_denoiser
from tests.search.worlds import space_from


def _save(path, seed: int) -> str:
    small = {"model_channels": 16, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}
    config = DenoiserConfig(network=DDPMpp(img_resolution=8, img_channels=1, **small))
    torch.manual_seed(seed)
    denoiser = build_denoiser(config)
    for parameter in denoiser.parameters():  # the last layers begin at 0: two new networks would be one
        torch.nn.init.normal_(parameter, std=0.05)
    save_model(str(path), config, denoiser.state_dict(), {})
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return _save(root / "main", 0), _save(root / "guide", 1)


def test_images_are_guided_and_the_hash_names_the_guide(models):
    plain, model = open_model(models[0]), open_model(*models)
    assert len({plain.hash, model.hash, open_model(models[1]).hash}) == 3
    seeds, settings = torch.arange(4), sampler(num_steps=4, guidance=2.0, guidance_max=5.0)
    images = generate(model.denoiser(), seeds, settings)
    assert not torch.equal(images, generate(model.denoiser(), seeds, sampler(num_steps=4)))
    assert torch.equal(images, generate(ShippedModel.of(model).denoiser("cpu"), seeds, settings))
    with pytest.raises(InputError, match="--guide MODEL"):
        generate(plain.denoiser(), seeds, settings)


def test_a_guide_of_other_images_is_refused(models):
    guide = open_model(models[1])
    network = dataclasses.replace(guide.config.network, img_resolution=16)
    other = dataclasses.replace(guide, config=dataclasses.replace(guide.config, network=network))
    with pytest.raises(InputError, match=r"16, 16, 1.*8, 8, 1"):
        open_model(models[0]).with_guide(other)


def test_the_command_line_takes_a_guide(models, tmp_path, capsys):
    pictures = []
    for name, more in (("a", []), ("b", ["--guide", models[1], "--set", "guidance=3", "num_steps=4"])):
        out = tmp_path / f"{name}.png"
        assert main(["generate", "--model", models[0], "--out", str(out), "--num", "4", *more]) == 0
        pictures.append(Image.open(out))
    assert pictures[1].text["guide"] == models[1] and pictures[0].tobytes() != pictures[1].tobytes()
    command = ["generate", "--model", models[0], "--out", str(tmp_path / "c.png"), "--set", "guidance=3"]
    assert main(command) == 2 and "--guide MODEL" in capsys.readouterr().err


def test_the_interval_of_guidance_can_be_searched(models):
    denoiser = open_model(*models).denoiser()
    space = space_from(
        "name: x\nsearch:\n  guidance: {low: 1, high: 3}\n  guidance_min: {low: 0.01, high: 10, scale: log}\n"
        "  guidance_max: {low: 0.1, high: 80, scale: log}\n"
    )
    point = {"guidance": 2.0, "guidance_min": 0.5, "guidance_max": 3.0}
    settings = space.settings(point)
    assert (settings.guidance, settings.guidance_min, settings.guidance_max) == (2.0, 0.5, 3.0)
    assert space.point_of(settings) == point and settings.nfe > sampler().nfe
    crossed = space.settings({**point, "guidance_min": 5.0})
    assert crossed.effective(denoiser) == sampler().effective(denoiser)
