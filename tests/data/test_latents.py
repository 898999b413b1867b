"""Latents: stored bit for bit, scaled by exact moments, trained on, and made pictures by a named decoder."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from PIL import __version__ as pillow_version

from edm_ray.cli import main
from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data import decoders
from edm_ray.data.codec import stored_pictures, to_pictures, to_training, view
from edm_ray.data.exact import channel_sums, exact_sum
from edm_ray.data.importers.pictures import PictureOptions
from edm_ray.data.importers.source import SourceSpec
from edm_ray.data.manifest import open_dataset
from edm_ray.data.plan import PlanOptions, PrepareShards, finish, make_plan
from edm_ray.data.reader import open_reader
from edm_ray.data.verify import read_verified
from edm_ray.diffusion.samplers import sampler
from edm_ray.errors import InputError
from edm_ray.generation.generate import generate
from edm_ray.models import load_model, open_model
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.run import claim_run, model_uri
from edm_ray.training.step import TrainingStep
from tests.data.sources import files_in, prepare_shard

ROWS, LABELS = 24, np.arange(24) % 2


def latents_of(dtype="float16", rows=ROWS, seed=0):
    """[rows, 4, 8, 8]; each channel has its own mean and spread."""
    noise = np.random.default_rng(seed).standard_normal((rows, 4, 8, 8))
    return (noise * np.array([0.2, 1, 3, 30])[:, None, None] + np.array([5, -1, 0, 100])[:, None, None]).astype(dtype)


def prepare(tmp_path, latents, *flags, name="d", **arrays):
    np.savez(tmp_path / f"{name}.npz", latents=latents, **{"labels": LABELS[: len(latents)], **arrays})
    command = ["prepare", str(tmp_path / f"{name}.npz"), str(tmp_path / name), "--codec", "latents"]
    return main([*command, "--decoder", "haar", *flags])


def numbers(dataset):
    """All rows as stored, and their labels."""
    rows, labels = stored(dataset)
    return view(torch.from_numpy(rows), dataset.codec).numpy(), labels


def stored(dataset):
    """All rows as bytes, in the order of the shards."""
    rows, labels = zip(*(read_verified(dataset, shard) for shard in dataset.shards))
    return np.concatenate(rows), np.concatenate(labels)


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f2", ">f4"])
def test_rows_come_back_bit_for_bit(tmp_path, dtype):
    latents = latents_of(dtype)
    latents[3, 0, 0, :3] = [-0.0, 6e-5, 6e-8]  # signed zero, and numbers float16 holds only just
    assert prepare(tmp_path, latents) == 0
    dataset = open_dataset(str(tmp_path / "d"))
    found, labels = numbers(dataset)
    little = latents.astype(latents.dtype.newbyteorder("<"))
    assert found.dtype == little.dtype and found.tobytes() == little.tobytes() and labels.tolist() == LABELS.tolist()
    with open_reader(dataset) as reader:
        batch = reader.at(np.arange(ROWS), 0)[0]
    assert sorted(row.tobytes() for row in batch.numpy()) == sorted(row.tobytes() for row in little), "and to training"


def test_a_npy_file_is_read_too_and_has_no_classes(tmp_path):
    latents = latents_of("float32")
    np.save(tmp_path / "z.npy", latents)
    command = ["prepare", str(tmp_path / "z.npy"), str(tmp_path / "d"), "--codec", "latents", "--decoder", "haar"]
    assert main(command) == 0
    dataset = open_dataset(str(tmp_path / "d"))
    assert np.array_equal(numbers(dataset)[0], latents) and dataset.class_names == ()


def test_moments_are_those_of_the_latents_however_shards_are_cut_and_in_any_order(tmp_path):
    latents = latents_of("float32")
    np.savez(tmp_path / "z.npz", latents=latents, labels=LABELS)
    spec = SourceSpec(uri=str(tmp_path / "z.npz"), kind="latents")
    codecs = []
    for shards in (1, 5, 24):
        plan, _ = make_plan(spec, PictureOptions(), PlanOptions(codec="latents", decoder="haar", shards=shards))
        dest = str(tmp_path / str(shards))
        for index in reversed(range(shards)):
            prepare_shard(dest, plan, index)
        codecs.append(finish(PrepareShards(dest=dest, plan=plan)).codec)
    assert codecs[0] == codecs[1] == codecs[2]
    wide = latents.astype(np.float64)
    assert codecs[0].mean == pytest.approx(wide.mean((0, 2, 3)), rel=1e-14)
    assert codecs[0].std == pytest.approx(wide.std((0, 2, 3)), rel=1e-13)


def test_sums_are_exact_where_floating_point_loses_everything():
    values = np.array([1e30, 1.0, -1e30, 2.0**-149, 3.0] * 50)
    expected = sum((Fraction(value) for value in values.tolist()), Fraction(0))
    assert exact_sum(values) == expected * 2**400 and values.sum() != float(expected)
    small = np.full((1, 1, 1, 1), np.float32(2.0**-149))
    assert channel_sums(small) == [(1 << 251, 1 << 102)]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_training_sees_mean_0_and_the_scale_asked_for_in_every_channel(tmp_path, dtype):
    latents = latents_of(dtype)
    assert prepare(tmp_path, latents, "--scale", "0.7") == 0
    codec = open_dataset(str(tmp_path / "d")).codec
    seen = to_training(torch.from_numpy(latents), codec).double().numpy()
    wide = latents.astype(np.float64)
    expected = (wide - wide.mean((0, 2, 3), keepdims=True)) / wide.std((0, 2, 3), keepdims=True) * 0.7
    assert np.abs(seen - expected).max() < 1e-5
    assert seen.mean((0, 2, 3)) == pytest.approx(0, abs=1e-6) and seen.std((0, 2, 3)) == pytest.approx(0.7, rel=1e-5)


def test_what_is_made_of_training_samples_is_what_the_decoder_makes_of_the_latents(tmp_path):
    """to_pictures undoes to_training, and haar_decode undoes haar_encode: pictures come back, every level."""
    pixels = np.random.default_rng(1).integers(0, 256, (ROWS, 3, 16, 16), np.uint8)
    np.savez(tmp_path / "p.npz", images=pixels, labels=LABELS)
    assert main(["prepare", str(tmp_path / "p.npz"), str(tmp_path / "d"), "--codec", "haar"]) == 0
    dataset = open_dataset(str(tmp_path / "d"))
    assert (dataset.channels, dataset.resolution, dataset.codec.decoder) == (12, 8, "haar")
    back = stored_pictures(stored(dataset)[0], dataset.codec)
    # float16 near 2 has steps of 2^-10, an eighth of a level; encode truncates at half a level.
    assert np.array_equal(back, pixels)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """(latents data set of 4 channels, tiny configuration, train it at a place)"""
    assert prepare(tmp_path, latents_of()) == 0
    dataset = open_dataset(str(tmp_path / "d"))
    settings = ["total_kimg=0.24", "tick_kimg=0.12", "checkpoint_kimg=0.048"]
    config = configure(tiny(dataset.shape), None, settings)

    def start(name, config=config):
        uri = str(tmp_path / name)
        claim_run(uri, config, dataset)
        train(TrainingJob(config=config, dataset=dataset, run_uri=uri))
        return model_uri(uri)

    return dataset, config, start


def test_a_model_trained_on_latents_generates_pictures_of_twice_their_side(run):
    dataset, _, start = run
    uri = start("run")
    assert open_model(uri).codec == dataset.codec
    images = generate(load_model(uri), torch.arange(3), sampler(num_steps=3))
    assert images.dtype == torch.uint8 and images.shape == (3, 1, 16, 16)


def test_resume_is_bit_exact(run, monkeypatch):
    _, _, start = run
    calm, steps, original = open_model(start("calm")).weights, 0, TrainingStep.take

    def step(self, pixels):
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return original(self, pixels)

    monkeypatch.setattr(TrainingStep, "take", step)
    with pytest.raises(KeyboardInterrupt):
        start("run")
    monkeypatch.setattr(TrainingStep, "take", original)
    assert open_model(start("run")).weights == calm


@pytest.mark.parametrize("setting", ["xflip=true", "augment.probability=0.1"])
def test_mirrored_and_augmented_latents_are_refused(run, capsys, tmp_path, setting):
    dataset, config, start = run
    extra = ["denoiser.network.augment_dim=9"] if setting.startswith("augment") else []
    with pytest.raises(InputError, match=f"{setting.split('=')[0]}.*holds latents"):
        start("run", configure(config, None, [setting, *extra]))
    command = ["train", "--data", dataset.uri, "--out", str(tmp_path / "cli"), "--preset", "tiny", "--no-ray"]
    assert main([*command, "--set", setting, *extra]) == 2
    assert "holds latents" in capsys.readouterr().err


def test_a_decoder_that_is_not_installed_is_named_with_those_that_are(tmp_path, capsys):
    assert prepare(tmp_path, latents_of(), "--decoder", "harr") == 0, "preparing needs none"
    assert main(["inspect", str(tmp_path / "d"), "--out", str(tmp_path / "g.png")]) == 2
    text = capsys.readouterr().err
    assert "decoder 'harr' is not installed here" in text and "haar" in text.replace("harr", "")
    assert 'entry-points."edm_ray.decoders"' in text and not (tmp_path / "g.png").exists()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda z: z, r"made torch.float32 \[2, 4, 8, 8\].*1 or 3, H, H"),
        (lambda z: z[:1, :3], "needed are floats"),
        (lambda z: z[:, :3].to(torch.uint8), "made torch.uint8"),
        (lambda z: z[:, :3] * float("nan"), "not numbers"),
        (lambda z: None, "made NoneType"),
    ],
    ids=["channels", "rows", "uint8", "nan", "none"],
)
def test_what_a_decoder_makes_is_checked(tmp_path, monkeypatch, made, message):
    assert prepare(tmp_path, latents_of()) == 0
    codec = dataclasses.replace(open_dataset(str(tmp_path / "d")).codec, decoder="mine")
    monkeypatch.setitem(decoders.BUILT_IN, "mine", made)
    with pytest.raises(InputError, match=message):
        to_pictures(torch.zeros(2, 4, 8, 8), codec)


def _with(value, dtype="float16"):
    latents = latents_of(dtype)
    latents[7, 2, 3, 4] = value
    return latents


CONSTANT = np.where(np.arange(4)[:, None, None] == 2, 1.5, latents_of("float32"))


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (_with(np.nan), r"latents row 7: nan at channel, row, column \(2, 3, 4\)"),
        (_with(np.inf, "float32"), r"latents row 7: inf at channel, row, column \(2, 3, 4\)"),
        (latents_of("float64"), r"latents is float64 .*float16 or float32"),
        (latents_of()[:, :, :, :6], r"latents is float16 \(24, 4, 8, 6\).*square"),
        (latents_of().transpose(0, 2, 3, 1).copy(), r"channels last: save array.transpose\(0, 3, 1, 2\)"),
        (np.zeros((4, 4, 8, 8), np.int16), "latents is int16"),
        (CONSTANT.astype(np.float32), "channel 2 of the latents is 1.5 everywhere"),
    ],
    ids=["nan", "inf", "float64", "oblong", "channels-last", "int16", "constant"],
)
def test_latents_that_cannot_be_trained_on_are_refused_by_name(tmp_path, capsys, latents, message):
    assert prepare(tmp_path, latents) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_arrays_of_rows_of_several_types_are_refused_unread(tmp_path, capsys):
    mixed = np.empty(2, object)
    mixed[:] = [np.zeros((4, 8, 8), np.float16), np.zeros((4, 8, 8), np.float32)]
    assert prepare(tmp_path, mixed) == 2
    assert "holds objects; numbers are needed" in capsys.readouterr().err


def test_a_broken_latent_can_be_left_out_and_is_counted(tmp_path):
    assert prepare(tmp_path, _with(np.nan), "--on-error", "skip") == 0
    dataset = open_dataset(str(tmp_path / "d"))
    assert dataset.rows == ROWS - 1 and dataset.skipped.count == 1 and "row 7" in dataset.skipped.first[0]
    assert np.array_equal(numbers(dataset)[0], np.delete(latents_of(), 7, 0))


def test_inspect_draws_through_the_decoder(tmp_path, capsys):
    levels = [10, 200]
    pixels = np.array([levels[label] for label in LABELS], np.uint8)[:, None, None, None].repeat(16, 2).repeat(16, 3)
    pixels[:, :, ::2, 1] ^= 1  # no channel is constant
    pixels[:, :, ::4, 3] ^= 1
    pixels[:, :, ::2, 5] ^= 3
    np.savez(tmp_path / "p.npz", images=pixels, labels=LABELS)
    assert main(["prepare", str(tmp_path / "p.npz"), str(tmp_path / "d"), "--codec", "haar"]) == 0
    assert main(["inspect", str(tmp_path / "d"), "--out", str(tmp_path / "g.png"), "--columns", "2"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "g.png").convert("L"))
    assert [int(sheet[row * 50 + 40, -20]) for row in (0, 1)] == levels
    assert "latents (float16, decoder haar) of 8x8x4" in capsys.readouterr().out


@pytest.mark.skipif(
    (pa.__version__, pillow_version) != ("26.0.1", "13.0.0"), reason="other versions write other bytes of the same data"
)
@pytest.mark.parametrize(
    ("encoding", "identity"),
    [
        ("raw", "93174eb003908d7cc015fb9927f9d4eca32d7494ed3e9ddcfc066565b5be1ee4"),
        ("png", "b890960e215172701b657a0a4468b94353be7b5ef89b329599689a3767b127af"),
    ],
)
def test_data_sets_of_pixels_keep_the_identity_they_had_before_there_were_latents(
    tmp_path, monkeypatch, encoding, identity
):
    """The hash covers sha256 of every shard; these were written by the version before. They change with the versions
    of pyarrow and Pillow, which write the files: then what that version writes is to be compared."""
    monkeypatch.chdir(tmp_path)
    images = (np.arange(20 * 3 * 8 * 8).reshape(20, 8, 8, 3) * 7 % 251).astype(np.uint8)
    np.savez("s.npz", images=images, labels=np.arange(20) % 2)
    assert main(["prepare", "s.npz", "d", "--encoding", encoding, "--shards", "3"]) == 0
    assert open_dataset("d").hash == identity and b'"codec"' not in files_in(tmp_path / "d")["manifest.json"]
