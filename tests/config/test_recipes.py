"""Table 2 of the paper, read off the recipes."""

from __future__ import annotations

import pytest

from edm_ray.config import recipes
from edm_ray.config.identity import identity_fields
from edm_ray.config.presets import PRESETS, preset
from edm_ray.config.shape import DataShape
from edm_ray.errors import InputError

SHAPE = DataShape(resolution=32, channels=3, num_classes=10)


def _changed(before: str, after: str) -> set[str]:
    old, new = (identity_fields(preset(name, SHAPE), "") for name in (before, after))
    return {key for key in old if old[key] != new[key]}


@pytest.mark.parametrize("column", ["vp", "ve"])
def test_each_configuration_changes_what_its_row_of_table_2_says_and_nothing_else(column):
    rows = [f"cifar10-cond-{column}-{letter}" for letter in recipes.LETTERS]
    assert _changed(*rows[0:2]) == {
        "batch_size",
        "optimizer.lr",
        "optimizer.ramp_kimg",
        "optimizer.grad_clip",
        "ema.halflife_kimg",
        "ema.rampup_ratio",
        "denoiser.network.dropout",
    }
    assert _changed(*rows[1:3]) == {"denoiser.network.channel_mult"}
    assert _changed(*rows[2:4]) == {"denoiser.preconditioning.kind"}
    assert _changed(*rows[3:5]) == {"objective.kind"}
    assert _changed(*rows[4:6]) == {"augment.probability", "denoiser.network.augment_dim", "xflip"}


@pytest.mark.parametrize("column", ["vp", "ve"])
def test_configuration_d_has_our_preconditioning_and_the_old_loss(column):
    config = preset(f"cifar10-uncond-{column}-d", SHAPE)
    assert (config.denoiser.preconditioning.kind, config.objective.kind) == ("edm", column)
    assert config.denoiser.network.label_dim == 0


def test_configuration_f_has_the_hyper_parameters_of_table_7():
    cifar, ffhq, afhq = (preset(f"{name}-vp-f", SHAPE) for name in ("cifar10-cond", "ffhq64", "afhqv2-64"))
    for config, batch, lr, dropout, probability in (
        (cifar, 512, 1e-3, 0.13, 0.12),
        (ffhq, 256, 2e-4, 0.05, 0.15),
        (afhq, 256, 2e-4, 0.25, 0.15),
    ):
        assert (config.batch_size, config.optimizer.lr, config.denoiser.network.dropout) == (batch, lr, dropout)
        assert config.augment.probability == probability and config.optimizer.grad_clip == 0
        assert (config.total_kimg, config.ema.halflife_kimg, config.optimizer.ramp_kimg) == (200_000, 500, 10_000)
    adm = preset("imagenet64-adm", SHAPE)
    assert (adm.batch_size, adm.optimizer.lr, adm.ema.halflife_kimg, adm.total_kimg) == (4096, 1e-4, 50_000, 2_500_000)
    assert (adm.precision, adm.loss_scale, adm.augment.probability, adm.xflip) == ("fp16", 100.0, 0.0, False)


def test_a_conditional_preset_needs_classes():
    with pytest.raises(InputError, match="has no classes"):
        preset("cifar10-cond-vp-f", DataShape(resolution=32, channels=3, num_classes=0))


def test_every_paper_configuration_is_listed():
    names = {f"{data}-{column}-{letter}" for data in ("cifar10-cond", "cifar10-uncond", "ffhq64", "afhqv2-64")
             for column in ("vp", "ve") for letter in "abcdef"}  # fmt: skip
    assert names | {"imagenet64-adm", "digits", "tiny"} <= PRESETS.keys()
