"""Nearest training images, inversion, interpolation, bf16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from edm_ray.cli import main
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.diffusion.samplers import sampler
from edm_ray.errors import InputError
from edm_ray.evaluation.grids import image_grid
from edm_ray.evaluation.neighbours import nearest, pixel_rows
from edm_ray.generation.figures import interpolation_figure, inversion_figure, neighbour_figure, spherical
from edm_ray.generation.generate import generate
from edm_ray.models import load_model

SETTINGS = sampler(num_steps=4)


@pytest.fixture(scope="module")
def denoiser(tiny_model):
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def digits(digits_dir):
    with open_reader(open_dataset(str(digits_dir / "train"))) as pixels:
        return np.array(pixels.images), np.array(pixels.labels)


def test_nearest_finds_what_sorting_all_distances_finds(monkeypatch):
    monkeypatch.setattr("edm_ray.evaluation.neighbours.BLOCK", 7)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (9, 3)).astype(np.int32), rng.integers(0, 4, (50, 3)).astype(np.int32)
    rows, distances = nearest(a, b, 6)
    everything = np.linalg.norm(a[:, None].astype(float) - b[None], axis=2)
    assert np.array_equal(rows, np.argsort(everything, axis=1, kind="stable")[:, :6])  # ties: the lower row first
    assert np.allclose(distances, np.sort(everything, axis=1)[:, :6])
    with pytest.raises(InputError, match="51 nearest images are asked for, there are 50"):
        nearest(a, b, 51)


def test_a_planted_copy_is_found_and_named(digits):
    training, _ = digits
    samples = training[[70, 300]].copy()
    samples[1, 0, 0, 0] += 3
    rows = pixel_rows(samples), pixel_rows(training)
    figure = neighbour_figure(samples, np.array([8, 9]), training, *rows, 2, "pixels")
    assert figure.columns == 3 and len(figure.images) == 6
    assert np.array_equal(figure.images[0], figure.images[1]) and np.array_equal(figure.images[4], training[300])
    assert (
        figure.text["neighbours"].startswith("seed 8: rows 70, ") and "seed 9: rows 300, " in figure.text["neighbours"]
    )
    assert "1 exact copies" in figure.lines[1] and "least 0 (seed 8, training row 70)" in figure.lines[1]


def test_inversion_shows_image_latent_image_and_difference(denoiser, digits):
    images, labels = digits[0][:3], digits[1][:3]
    few, many = (inversion_figure(denoiser, images, labels, sampler(num_steps=steps, rho=3), 4) for steps in (4, 32))
    assert few.columns == 4 and few.images.shape == (12, 1, 8, 8)
    assert np.array_equal(few.images[[0, 4, 8]], images)
    errors = [float(figure.text["inversion error"]) for figure in (few, many)]
    assert errors[1] < errors[0] / 2  # a finer way there and back is nearer
    other_batch = inversion_figure(denoiser, images, labels, sampler(num_steps=4, rho=3), 2)
    assert np.abs(other_batch.images.astype(int) - few.images).max() <= 1


def test_points_on_the_great_circle_keep_the_length_of_their_ends():
    noise = torch.randn(2, 1, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = noise[0] / noise[0].norm(), noise[1] / noise[1].norm()
    path = spherical(a, b, torch.linspace(0, 1, 7, dtype=torch.float64))
    assert torch.allclose(path.flatten(1).norm(dim=1), torch.ones(7, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(path[0], a) and torch.allclose(path[-1], b)
    steps = (path[1:] - path[:-1]).flatten(1).norm(dim=1)
    assert torch.allclose(steps, steps[:1].expand(6), atol=1e-12)
    assert torch.equal(spherical(a, a, torch.tensor([0.5], dtype=torch.float64))[0], a)


def test_the_ends_of_a_path_are_the_images_of_its_seeds(denoiser):
    figure = interpolation_figure(denoiser, [(3, 7), (11, 14)], 5, SETTINGS, "balanced", 4)
    ends = generate(denoiser, torch.tensor([3, 7, 11, 14]), SETTINGS, "balanced").numpy()
    found = figure.images[[0, 4, 5, 9]]
    assert np.abs(found.astype(int) - ends).max() <= 1
    assert figure.columns == 5 and not np.array_equal(figure.images[0], figure.images[4])


def test_the_pictures_of_the_command_say_what_they_show(capsys, tiny_model, digits_dir, tmp_path):
    base = ["generate", "--model", tiny_model, "--num", "3", "--set", "num_steps=3", "--out"]
    data = str(digits_dir / "train")
    assert main([*base, str(tmp_path / "n.png"), "--neighbours", data, "--nearest", "2"]) == 0
    assert main([*base, str(tmp_path / "i.png"), "--invert", data]) == 0
    assert main([*base, str(tmp_path / "p.png"), "--interpolate", "3:7", "--columns", "4"]) == 0
    said = capsys.readouterr().out
    assert "2 nearest training images in pixels" in said and "root mean square error" in said and "seed 3 to" in said
    texts = [Image.open(tmp_path / f"{name}.png").text for name in "nip"]
    assert "seed 10: rows" in texts[0]["neighbours"]  # balanced: every tenth seed, each row another class
    assert float(texts[1]["inversion error"]) > 0 and texts[2]["interpolation"] == "seed 3 to seed 7"


def test_neighbours_are_also_found_in_the_features_of_a_reference(
    capsys, tiny_model, digits_dir, digits_reference, tmp_path
):
    data = str(digits_dir / "train")
    arguments = ["--neighbours", data, "--reference", digits_reference, "--num", "2", "--set", "num_steps=3"]
    assert main(["generate", "--model", tiny_model, "--out", str(tmp_path / "n.png"), *arguments]) == 0
    assert "in features of digits" in capsys.readouterr().out


def test_a_white_bar_sets_the_first_columns_apart():
    images = np.full((4, 1, 2, 2), 50, np.uint8)
    sheet = np.asarray(image_grid(images, columns=2, scale=1, gap=3, lead=1))
    assert sheet.shape == (7, 2 * 5 - 3 + 6)
    assert (sheet[:, 5:8] == 255).all() and sheet[0, 0] == sheet[0, -1] == 50


def test_bf16_changes_the_network_alone_and_little(denoiser):
    seeds = torch.arange(20)
    full, half = (generate(denoiser, seeds, SETTINGS, precision=p).int() for p in ("fp32", "bf16"))
    gap = (full - half).abs()
    assert int(gap.max()) > 0 and float(gap.float().mean()) < 3.0
    again = generate(denoiser, seeds[7:9], SETTINGS, precision="bf16").int()
    assert torch.equal(again, half[7:9])
    with pytest.raises(InputError, match="give fp32, bf16, fp16"):
        generate(denoiser, seeds, SETTINGS, precision="fp8")


def test_the_precision_is_part_of_a_chunks_identity():
    from edm_ray.evaluation.chunks import Chunk, Generator
    from edm_ray.storage.artifacts import key_of

    keys = {
        key_of(
            Chunk(
                generator=Generator(
                    model="m", extractor="e", labels="random", micro_batch=50, device="cpu", precision=precision
                ),
                settings=SETTINGS,
                first=0,
                size=10,
            )
        )
        for precision in ("fp32", "bf16")
    }
    assert len(keys) == 2
