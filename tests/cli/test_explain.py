"""`edm-ray explain`: figures come out, wrong arguments are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edm_ray.cli.explain import Args, run
from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import DDPMpp
from edm_ray.diffusion.samplers import sample, sampler
from edm_ray.errors import InputError
from edm_ray.models.directory import save_model
from edm_ray.networks.build import build_denoiser
from edm_ray.report.design_space import mixture


def test_every_figure_is_drawn_without_a_model(tmp_path: Path, capsys) -> None:
    run(Args(out=str(tmp_path / "figures")))
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["inversion.png", "schedules.png", "trajectories.png", "truncation.png", "weighting.png"]
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "rho = 7: largest error of a step" in said and "inversion and back, Heun, rho 3: 8 steps" in said


def test_samples_of_the_mixture_that_is_drawn_lie_at_its_modes() -> None:
    x = sample(mixture(), torch.linspace(-2, 2, 40).reshape(-1, 1, 1, 1), sampler(num_steps=64))
    assert ((x.abs() - 1).abs() < 0.4).all()


def test_data_without_a_model_and_too_few_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--data needs --model"):
        run(Args(out=str(tmp_path), data="x"))
    with pytest.raises(InputError, match="--num-steps"):
        run(Args(out=str(tmp_path), num_steps=1))


@pytest.mark.slow
def test_the_loss_of_a_model_is_drawn_too(tmp_path: Path, digits_dir: Path) -> None:
    small = {"model_channels": 16, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}
    network = DDPMpp(img_resolution=8, img_channels=1, label_dim=10, **small)
    config = DenoiserConfig(network=network)
    save_model(str(tmp_path / "model"), config, build_denoiser(config).state_dict(), {})
    run(
        Args(out=str(tmp_path / "f"), model=str(tmp_path / "model"), data=str(digits_dir / "train"), num=4, num_steps=5)
    )
    assert (tmp_path / "f" / "loss.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_sampler_is_explained_as_it_can_be_given_again(tmp_path: Path, capsys) -> None:
    file = tmp_path / "best-sampler.yaml"
    file.write_text("sampler: {solver: euler, sigmas: [80, 9, 1.5, 0.1], gammas: [0, 0.2, 0, 0]}\n")
    run(Args(out=str(tmp_path / "a"), sampler=str(file)))
    said = capsys.readouterr().out
    assert "euler num_steps=4" in said and "4 network evaluations an image" in said
    assert "sigmas=[80, 9, 1.5, 0.1], then 0" in said and "gammas=[0, 0.2, 0, 0]" in said
    assert (tmp_path / "a" / "sampler.png").stat().st_size > 10_000
    run(Args(out=str(tmp_path / "b"), set=["solver=unipc", "num_steps=6", "sigma_min=0.1"]))
    said = capsys.readouterr().out
    assert "unipc num_steps=6 sigma_min=0.1" in said and "largest error of a step" in said and "gammas" not in said
    with pytest.raises(InputError, match=r"sampler\.order=4 is not allowed: 2 or 3"):
        run(Args(out=str(tmp_path / "c"), set=["solver=unipc", "order=4"]))
    assert not (tmp_path / "c").exists()
