"""The geometric augmentation against pictures known in closed form, and its labels against the paper's list."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from edm_ray.seeding import stream_key, uniform
from edm_ray.training.augment import (
    DELAY,
    SYM6,
    AugmentParameters,
    augment,
    augment_labels,
    draw_parameters,
    inverse_transforms,
    resample,
)

SIDE = 32
NAMES = tuple(AugmentParameters.__dataclass_fields__)


def parameters(**values: float) -> AugmentParameters:
    return AugmentParameters(**{name: torch.tensor([float(values.get(name, 0))]).double() for name in NAMES})


def scene(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A smooth picture without symmetry, as a function of pixels from the centre."""
    return torch.cos(0.35 * x + 0.2 * y) + 0.5 * torch.sin(0.1 * x - 0.3 * y)


def grid() -> tuple[torch.Tensor, torch.Tensor]:
    axis = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def picture() -> torch.Tensor:
    return scene(*grid())[None, None].float()


def test_sym6_is_orthonormal_and_has_six_vanishing_moments():
    h = torch.tensor(SYM6, dtype=torch.float64)
    assert float(h.sum()) == pytest.approx(math.sqrt(2), abs=1e-12)
    for shift in range(6):
        assert float((h[: 12 - 2 * shift] * h[2 * shift :]).sum()) == pytest.approx(float(shift == 0), abs=1e-11)
    high = torch.tensor([(-1) ** k * SYM6[11 - k] for k in range(12)], dtype=torch.float64)
    for power in range(6):
        assert abs(float((high * torch.arange(12.0).double() ** power).sum())) < 1e-7


def test_resampling_by_the_identity_gives_the_picture_back():
    images = torch.rand(2, 3, 16, 16)
    identity = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]).expand(2, 2, 3)
    assert float((resample(images, identity) - images).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "values",
    [
        {"rotate": 0.7},
        {"scale": 1.0},
        {"scale": -0.7, "rotate": -1.9},
        {"shift_x": 0.5, "shift_y": -0.3},
        {"aniso": 1.0, "aniso_angle": 0.4},
        {"scale": 0.5, "rotate": 0.3, "aniso": -0.8, "aniso_angle": 2.0, "shift_x": 0.4, "shift_y": 0.2},
    ],
)
def test_a_smooth_picture_moves_as_the_formula_says(values):
    x, y = grid()
    p = parameters(**values)
    m = inverse_transforms(p, SIDE)[0]
    # As in the released code, the origin lies beside the filter's centre of mass: by so much, in pixels.
    beside = (sum(i * tap for i, tap in enumerate(SYM6)) / sum(SYM6) - DELAY) / 2
    assert beside == pytest.approx(0.049, abs=1e-3)
    from_x, from_y = (row[0] * (x + beside) + row[1] * (y + beside) + row[2] - beside for row in m)
    inside = (from_x.abs() < 13) & (from_y.abs() < 13)
    error = (augment(picture(), p)[0, 0] - scene(from_x, from_y))[inside]
    assert int(inside.sum()) > 200 and float(error.abs().max()) < 0.012


def test_a_quarter_turn_is_counter_clockwise_as_seen():
    turned = augment(picture(), parameters(rotate=math.pi / 2))[0, 0]
    assert float((turned - torch.rot90(picture()[0, 0], 1))[3:-3, 3:-3].abs().max()) < 0.04


def plainly(image: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """The paper's resampling of one channel, step by step: reflect, insert zeros, filter, bilinear, filter, halve.

    The flipped filter with 6 zeros around puts pixel k at sample 2 k of 2 N: the image's centre (N - 1) / 2 is at
    N - 1, half a sample before the middle of the finer image; the filter with 5 zeros around takes it from there.
    """
    side, h = len(image), np.array(SYM6)

    def both(function):
        return lambda values: np.apply_along_axis(function, 1, np.apply_along_axis(function, 0, values))

    def finer(row: np.ndarray) -> np.ndarray:
        zeros = np.zeros(2 * len(row) - 1)
        zeros[::2] = row
        return np.correlate(np.pad(zeros, 6), h[::-1], "valid")

    wide = np.pad(image, side - 1, mode="reflect")
    fine = both(finer)(wide)
    canvas = np.arange(2 * (side + 6)) - (side + 6 - 0.5)  # samples from the middle of a canvas 3 pixels wider
    v, u = np.meshgrid((canvas + 0.5) / 2, (canvas + 0.5) / 2, indexing="ij")
    x, y = (row[0] * u + row[1] * v + row[2] for row in inverse)
    places = [2 * y + len(wide) - 1, 2 * x + len(wide) - 1]
    seen = map_coordinates(fine, places, order=1, mode="constant")
    return both(lambda row: np.correlate(np.pad(row, 5), h, "valid")[::2])(seen)[3:-3, 3:-3]


@pytest.mark.parametrize("index", range(12))
def test_every_transform_is_the_papers_resampling_written_plainly(index):
    """On white noise, in float64: nothing of the filters or of where the origin lies is hidden by smoothness."""
    p = draw_parameters(torch.tensor([index]), 0.7, seed=3)
    image = uniform(stream_key("noise"), torch.arange(24 * 24), 1).reshape(1, 1, 24, 24)
    inverse = inverse_transforms(p, 24)
    expected = plainly(image[0, 0].numpy(), inverse[0].numpy())
    np.testing.assert_allclose(resample(image, inverse)[0, 0].numpy(), expected, atol=1e-9)


def test_a_batch_that_nothing_touches_costs_nothing(monkeypatch):
    images = torch.rand(5, 3, 8, 8)
    idle = draw_parameters(torch.arange(5), 0.0, seed=0)
    for name in ("flip", "index_select", "index_copy"):
        monkeypatch.setattr(torch.Tensor, name, None)
    assert augment(images, idle) is images


def test_shifts_go_right_and_down_by_an_eighth_of_the_side_a_unit():
    moved = augment(picture(), parameters(shift_x=1.0, shift_y=0.5))[0, 0]  # by 4 and 2 pixels
    assert float((moved[8:-4, 8:-4] - picture()[0, 0, 6:-6, 4:-8]).abs().max()) < 0.012


def test_a_scale_above_one_magnifies_and_outside_lies_the_reflection():
    m = inverse_transforms(parameters(scale=1.0), SIDE)[0]
    assert float(m[0, 0]) == pytest.approx(2**-0.2) and float(m[1, 1]) == pytest.approx(2**-0.2)
    constant = torch.full((1, 1, SIDE, SIDE), 0.3)
    shrunk = augment(constant, parameters(scale=-2.0, rotate=0.5, shift_x=1.5))
    assert float((shrunk - 0.3).abs().max()) < 1e-5


def test_flips_are_exact_and_untouched_images_keep_every_bit():
    images = torch.rand(4, 3, 8, 8)
    p = AugmentParameters(
        **{name: torch.zeros(4, dtype=torch.float64) for name in NAMES if name not in ("xflip", "yflip", "rotate")},
        xflip=torch.tensor([1.0, 0, 1, 0]).double(),
        yflip=torch.tensor([0.0, 1, 1, 0]).double(),
        rotate=torch.tensor([0.0, 0, 0, 0.3]).double(),
    )
    out = augment(images, p)
    expected = [images[0].flip(2), images[1].flip(1), images[2].flip(1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(out, expected))
    assert not torch.equal(out[3], images[3])
    nothing = draw_parameters(torch.arange(4), 0.0, seed=0)
    assert augment(images, nothing).equal(images) and not augment_labels(nothing).any()


def test_an_image_is_augmented_to_the_same_bits_in_any_batch():
    positions, images = torch.arange(40), torch.rand(40, 3, 16, 16)
    whole = augment(images, draw_parameters(positions, 0.5, seed=1))
    for part in (slice(0, 7), slice(7, 40), slice(8, 9)):
        alone = augment(images[part], draw_parameters(positions[part], 0.5, seed=1))
        assert torch.equal(whole[part], alone)
    assert not torch.equal(whole, images)


def test_labels_are_the_nine_numbers_of_the_paper_in_their_order():
    p = parameters(xflip=1, scale=0.4, rotate=0.6, aniso=-1.5, aniso_angle=0.8, shift_x=0.1, shift_y=-0.2)
    expected = [1, 0, 0.4, math.cos(0.6) - 1, math.sin(0.6), -1.5 * math.cos(0.8), -1.5 * math.sin(0.8), 0.1, -0.2]
    assert augment_labels(p)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_each_label_is_non_zero_as_often_as_the_paper_has_it():
    labels = augment_labels(draw_parameters(torch.arange(40_000), 0.12, seed=0))
    expected = torch.tensor([0.50, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12])
    se = (expected * (1 - expected) / 40_000).sqrt()
    assert bool(((labels != 0).float().mean(0) - expected).abs().lt(4 * se).all())
    assert abs(float(labels[:, 2].std()) - math.sqrt(0.12)) < 0.01
    angle = torch.atan2(labels[:, 4], labels[:, 3] + 1)[labels[:, 4] != 0]
    assert abs(float(angle.std()) - math.pi / math.sqrt(3)) < 0.05
