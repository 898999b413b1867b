"""What a dry run says in human terms: the preset that suits, years, memory, images, time and cost."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch

from edm_ray.cli import main, plan, spending
from edm_ray.config.presets import FOR_PEOPLE, MANY_IMAGES, PRESETS, proposed
from edm_ray.config.shape import DataShape
from edm_ray.networks.build import build_denoiser
from edm_ray.training import cost
from edm_ray.training.cost import check_memory, costs_at, machine_gib, sampling_hours


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """422 pictures of 32x32."""
    place = str(tmp_path_factory.mktemp("photos") / "photos")
    assert main(["prepare", "photographs", place, "--resolution", "32", "--num", "422"]) == 0
    return place


@pytest.fixture
def slow(monkeypatch) -> None:
    """A machine that takes 1.4 s an image, and has 24 GiB."""
    monkeypatch.setattr(plan, "measure_image", lambda config, device: (1.4, 1))
    for module in (plan, cost):
        monkeypatch.setattr(module, "machine_gib", lambda device: 24.0)


@pytest.mark.parametrize("resolution", [8, 16, 28, 32, 48, 64, 96])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize(("rows", "device"), [(422, "cpu"), (10**6, "cuda")])
def test_what_is_proposed_fits_the_data_and_is_one_of_the_five(resolution, channels, classes, rows, device):
    shape = DataShape(resolution=resolution, channels=channels, num_classes=classes)
    name = proposed(shape, rows, device)
    assert name in FOR_PEOPLE and len(FOR_PEOPLE) == 5
    network = PRESETS[name].make(shape).denoiser.network
    assert (network.img_resolution, network.img_channels, network.label_dim) == (resolution, channels, classes)
    with torch.device("meta"):
        build_denoiser(PRESETS[name].make(shape).denoiser)


def test_where_the_default_does_not_fit_the_data_the_preset_that_does_is_named(capsys, tmp_path):
    place = str(tmp_path / "photos")
    assert main(["prepare", "photographs", place, "--resolution", "28", "--num", "40"]) == 0
    capsys.readouterr()
    assert main(["train", "--data", place, "--out", str(tmp_path / "run")]) == 2
    text = capsys.readouterr().err
    assert (
        "attn_resolutions=(16,) is not allowed" in text
        and "40 images of 28x28: give --preset small-32 for them" in text
    )


def test_a_large_network_is_proposed_for_many_images_on_a_gpu_only():
    shape = DataShape(resolution=64, channels=3, num_classes=0)
    assert proposed(shape, MANY_IMAGES, "cuda") == "ddpmpp-64"
    assert {proposed(shape, MANY_IMAGES, "cpu"), proposed(shape, MANY_IMAGES - 1, "cuda")} == {"small-64"}


def test_without_a_preset_a_plan_of_years_is_warned_of_and_another_proposed(capsys, photos, tmp_path, slow):
    train = ["train", "--data", photos, "--out", str(tmp_path / "run"), "--set", "micro_batch=8"]
    assert main([*train, "--dry-run"]) == 0
    warning = capsys.readouterr().out.splitlines()[-1]
    assert warning.startswith("WARNING: 422 pictures of 32x32 on 1 CPU of this machine: give --preset small-32")
    assert "this plan (ddpmpp-32) would take 9 years and see each 473,934 times" in warning
    assert main(train) == 2
    text = capsys.readouterr().err
    assert "give --preset small-32" in text and text.endswith("if that is what you want, give --preset ddpmpp-32\n")
    assert not (tmp_path / "run").exists()


def test_a_preset_that_was_asked_for_is_warned_of_when_it_is_long_and_only_then(capsys, photos, tmp_path, slow):
    train = ["train", "--data", photos, "--out", str(tmp_path / "run"), "--dry-run", "--set", "micro_batch=8"]
    assert main([*train, "--preset", "ddpmpp-32"]) == 0
    assert "WARNING: 422 pictures" in capsys.readouterr().out
    assert main([*train, "total_kimg=1", "--preset", "ddpmpp-32"]) == 0
    assert main([*train, "--preset", "small-32"]) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_a_short_plan_without_a_preset_is_only_warned_of(photos, tmp_path, slow, monkeypatch):
    begun = []
    monkeypatch.setattr("edm_ray.tasks.train.TrainTask.run", lambda *given: begun.append(given))
    train = ["train", "--data", photos, "--out", str(tmp_path / "run"), "--no-ray", "--set", "micro_batch=8"]
    assert main([*train, "total_kimg=1"]) == 0 and len(begun) == 1


@pytest.mark.parametrize("workers", ["0", "1", "2"])
def test_what_this_machine_cannot_hold_is_refused_before_ray_starts_and_in_a_dry_run(
    capsys, photos, tmp_path, slow, workers
):
    train = ["train", "--data", photos, "--out", str(tmp_path / "run"), "--workers", workers, "--dry-run"]
    assert main(train) == 2
    text = capsys.readouterr().err
    assert re.search(r"take about 6[78] GiB, this machine has 24 GiB; give --set micro_batch=", text)
    assert "give --preset small-32" in text
    micro = re.findall(r"micro_batch=(\d+)", text)[0]
    assert main([*train, "--preset", "ddpmpp-32", "--set", f"micro_batch={micro}"]) == 0


def test_workers_of_one_machine_share_its_memory_those_of_a_cluster_and_gpus_do_not(monkeypatch):
    config = PRESETS["ddpmpp-32"].make(DataShape(resolution=32, channels=3, num_classes=0))
    monkeypatch.setattr(cost, "machine_gib", lambda device: 40.0)
    for workers in (1, 4, 8):
        with pytest.raises(ValueError, match="this machine has 40 GiB"):
            check_memory(config, workers, "cpu", here=True)
    check_memory(config, 4, "cpu", here=False)
    check_memory(config, 2, "cuda", here=True)
    monkeypatch.setattr(cost, "machine_gib", lambda device: 8.0)
    with pytest.raises(ValueError, match="this GPU has 8 GiB"):
        check_memory(config, 2, "cuda", here=True)


def test_the_memory_of_a_container_is_what_it_may_use(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(cost, "CGROUP_LIMIT", limit)
    whole = machine_gib("cpu")
    limit.write_text("max\n")
    assert machine_gib("cpu") == whole
    limit.write_text(f"{1 << 30}\n")
    assert machine_gib("cpu") == 1.0


@pytest.fixture(scope="module")
def model(digits_dir, tmp_path_factory) -> str:
    run = str(tmp_path_factory.mktemp("plans") / "run")
    assert main(["train", "--data", str(digits_dir / "train"), "--out", run, "--preset", "tiny", "--no-ray"]) == 0
    return f"{run}/model"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_dry_evaluation_says_images_time_and_cost_and_what_is_stored(
    capsys, model, digits_reference, tmp_path, device
):
    command = ["evaluate", "--model", model, "--reference", digits_reference, "--out", str(tmp_path / "e")]
    command += ["--set", "num_steps=4", "--num"]
    if device == "cpu":
        assert main([*command, "200", "--workers", "0"]) == 0
    capsys.readouterr()
    assert main([*command, "300", "--workers", "2", "--device", device, "--dry-run"]) == 0
    text = capsys.readouterr().out
    stored = ", 200 of them stored already" if device == "cpu" else ""
    assert f"images    300{stored}; 2,100 network calls" in text
    known = "measured here, now" if device == "cpu" or torch.cuda.is_available() else "on 2 A100 (assumed: the paper's"
    assert known in text and re.search(r"^  cost +.* USD \(assumed", text, re.M)
    assert "Ray(" not in text and f"{device}, by 2 workers of Ray" in text


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (["--nfe", "5,8"], lambda images: images[0] * 5 + images[1] * 8),
        (["--space", "tune_spaces/digits.yaml"], lambda images: images[0] * 35),
        (["--space", "tune_spaces/cifar10-steps.yaml"], lambda images: images[0] * 79),
    ],
)
def test_a_dry_sweep_says_its_most_images_calls_time_and_cost(
    capsys, model, digits_reference, tmp_path, options, calls
):
    sweep = ["sweep", "--model", model, "--reference", digits_reference, "--out", str(tmp_path / "s"), *options]
    assert main([*sweep, "--budget-images", "240000", "--dry-run"]) == 0
    text = capsys.readouterr().out
    images = 240000 // (2 if "--nfe" in options else 1)
    assert f"at most 240,000; at most {calls([images, images]):,} network calls" in text
    assert "time      at most" in text and "cost      " in text and not (tmp_path / "s").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would be measured")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_plan_for_gpus_in_full_precision_says_what_is_faster(capsys, photos, tmp_path, precision):
    train = ["train", "--data", photos, "--out", str(tmp_path / "run"), "--preset", "ddpmpp-32", "--device", "cuda"]
    assert main([*train, "--dry-run", "--set", f"precision={precision}"]) == 0
    assert ("--set precision=bf16` trained 11 times" in capsys.readouterr().out) == (precision == "fp32")


def test_settings_that_are_wrong_are_not_blamed_on_the_preset(capsys, photos, tmp_path):
    """ddpmpp-32, the default, does not suit these pictures on a CPU; that is not what is wrong."""
    train = ["train", "--data", photos, "--out", str(tmp_path / "run"), "--dry-run", "--set"]
    for wrong in ("optimizer.lr=inf", "optimizer.learning=1", "denoiser.network.model_channels=3"):
        assert main([*train, wrong]) == 2
        text = capsys.readouterr().err
        assert wrong.split("=")[0].rpartition(".")[2] in text and "--preset" not in text, text


def test_the_speed_is_measured_in_the_precision_that_was_asked_for(
    capsys, monkeypatch, model, digits_reference, tmp_path
) -> None:
    seen = []
    monkeypatch.setattr(
        spending, "network_precision", lambda precision, device: seen.append(precision) or contextlib.nullcontext()
    )
    common = ["--model", model, "--reference", digits_reference, "--out", str(tmp_path / "s"), "--dry-run"]
    assert main(["sweep", *common, "--nfe", "5", "--precision", "bf16", "--micro-batch", "250"]) == 0
    capsys.readouterr()
    assert main(["evaluate", *common, "--precision", "fp16", "--json"]) == 0
    assert seen == ["bf16", "fp16"] and json.loads(capsys.readouterr().out)["micro_batch"] == 50


def test_sampling_and_training_are_estimated_by_one_model():
    """An A100 samples three network calls in the time of a training image, about."""
    from edm_ray.networks.cost import network_cost

    network = network_cost(PRESETS["ddpmpp-32"].make(DataShape(resolution=32, channels=3, num_classes=0)).denoiser)
    costs = costs_at(True)
    hours = sampling_hours(network, 1e9, 0, costs)
    train = 384 / costs["a100_by_v100"] * (1e9 / 200e6) / 3 / costs["sampling"]
    assert hours == pytest.approx(train, rel=1e-6)
    assert sampling_hours(network, 0, costs["inception"], costs) == pytest.approx(1 / 3600)


def test_presets_are_five_for_people_and_with_all_every_one_in_80_columns(capsys):
    for options, names in (([], FOR_PEOPLE), (["--all"], PRESETS)):
        assert main(["presets", *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert [line.split()[0] for line in lines if line.split() and line.split()[0] in PRESETS] == list(names)
    assert main(["presets", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["presets"]] == list(FOR_PEOPLE)


def test_documents_name_no_preset_that_is_not_there():
    root = Path(__file__).parents[2]
    for path in [root / "README.md", *(root / "docs").glob("*.md")]:
        for name in re.findall(r"--preset ([a-z0-9-]+)", path.read_text()):
            assert name in PRESETS, (path, name)


@pytest.mark.parametrize(("hours", "says"), [("33", "one each 33 h"), ("0", "none expected (--node-hours 0)")])
def test_a_plan_says_what_failures_lose_and_which_interval_of_checkpoints_loses_least(
    hours, says, capsys, photos, tmp_path, slow, monkeypatch
):
    monkeypatch.setattr(plan, "measure_checkpoint", lambda size: 2.0)
    command = ["train", "--data", photos, "--out", str(tmp_path / "run"), "--preset", "small-32", "--dry-run"]
    more = ["--workers", "0", "--node-hours", hours, "--set", "checkpoint_kimg=36", "total_kimg=72"]
    assert main([*command, "--json", *more]) == 0
    told = capsys.readouterr()
    [line] = [line for line in told.err.splitlines() if line.startswith("  failures")]
    assert says in line and "  Ray " not in told.err, "one process: nothing to say of Ray"
    facts = json.loads(told.out)
    assert facts["checkpoint_s"] == pytest.approx(36_000 * 1.4)
    best = facts["best_checkpoint_s"]
    assert best == pytest.approx((2 * 2.0 * 33 * 3600) ** 0.5, rel=0.02) if hours == "33" else best == 36_000 * 1.4
    assert ("so the run also makes a checkpoint each" in line) == (hours == "33")
