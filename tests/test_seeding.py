from __future__ import annotations

import numpy as np
import pytest
import torch

from edm_ray.seeding import image_noise, normal, philox, stream_key, uniform, words


def _word(value: int) -> torch.Tensor:
    return torch.full((1,), value, dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0 << 32 | 0xA4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    """Known-answer vectors of Random123 for philox4x32-10."""
    assert tuple(int(word) for word in philox(tuple(map(_word, counter)), key)) == expected


def test_an_images_numbers_do_not_depend_on_the_batch_around_it():
    key = stream_key("test")
    seeds = torch.tensor([5, 2**40 + 7, 0])
    together = normal(key, seeds, 33, step=3, draw=1)
    for row, seed in enumerate(seeds):
        assert torch.equal(normal(key, seed[None], 33, step=3, draw=1)[0], together[row])


def test_every_coordinate_of_the_key_changes_the_numbers():
    image = torch.tensor([1])
    base = words(stream_key("a"), image, 8)
    others = [
        words(stream_key("b"), image, 8),
        words(stream_key("a", 1), image, 8),
        words(stream_key("a"), image + 1, 8),
        words(stream_key("a"), image + 2**32, 8),
        words(stream_key("a"), image, 8, step=1),
        words(stream_key("a"), image, 8, draw=1),
    ]
    assert all(int((base == other).sum()) == 0 for other in others)


def test_normal_numbers_have_the_moments_of_a_unit_normal():
    values = normal(stream_key("moments"), torch.arange(2000), 500).numpy().ravel()
    for order, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        powers = values**order
        assert abs(powers.mean() - moment) < 5 * powers.std() / np.sqrt(values.size)


def test_uniform_numbers_stay_strictly_inside_the_unit_interval():
    values = uniform(stream_key("u"), torch.arange(1000), 1000)
    assert 0.0 < float(values.min()) < 1e-5 and 1 - 1e-5 < float(values.max()) < 1.0


def test_noise_of_two_steps_is_uncorrelated():
    noise = image_noise(torch.arange(200), "churn", (1, 16, 16))
    a, b = noise(0).flatten(), noise(1).flatten()
    assert noise(0).shape == (200, 1, 16, 16)
    assert abs(float((a * b).mean())) < 5 / len(a) ** 0.5
