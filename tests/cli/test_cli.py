from __future__ import annotations

import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from edm_ray.cli import COMMANDS, main
from edm_ray.cli.sampler import choose_settings


def _error(capsys, *arguments) -> str:
    """The one line of an expected failure."""
    assert main(list(arguments)) == 2
    text = capsys.readouterr().err
    assert text.startswith("edm-ray: ") and text.count("\n") == 1 and "Traceback" not in text
    return text


def test_an_unknown_command_names_the_nearest(capsys):
    assert "did you mean 'train'" in _error(capsys, "trian")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--preset", "digitz"], "did you mean 'digits'"),
        (["--preset", "tiny", "--set", "optimizer.lrr=1"], "did you mean 'lr'"),
        (["--preset", "tiny", "--workers", "0:2"], "--workers 0:2: give 1 or more"),
        (["--preset", "tiny", "--workers", "3:2"], "--workers 3:2: give 1 or more, and MOST not below LEAST"),
        (["--preset", "tiny", "--workers", "two"], "give 1 or more, or LEAST:MOST"),
        (["--preset", "tiny", "--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["--preset", "tiny", "--set", "denoiser.network.label_dim=7"], "has 10 classes"),
        (["--preset", "tiny", "--no-ray", "--workers", "2"], "give --workers 0"),
        (["--preset", "tiny", "--device", "tpu"], "give cpu or cuda"),
    ],
)
def test_bad_input_to_train_is_one_line_with_the_fix(capsys, digits_dir, tmp_path, arguments, says):
    data = ["train", "--data", str(digits_dir / "train"), "--out", str(tmp_path / "run")]
    assert says in _error(capsys, *data, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_missing_data_set_says_how_to_make_one(capsys, tmp_path):
    text = _error(capsys, "train", "--data", str(tmp_path / "no"), "--out", str(tmp_path / "run"))
    assert str(tmp_path / "no") in text and "edm-ray prepare" in text


def test_a_folder_of_another_run_is_refused(capsys, digits_dir, tmp_path):
    data = ["train", "--data", str(digits_dir / "train"), "--out", str(tmp_path), "--preset", "tiny", "--no-ray"]
    assert main(data) == 0
    assert "seed: 0 -> 5" in _error(capsys, *data, "--set", "seed=5")


def test_missing_models_references_and_samplers_are_named(capsys, tmp_path):
    no = str(tmp_path / "no")
    assert "no model directory" in _error(capsys, "generate", "--model", no, "--out", "x.png")
    assert "best-sampler.yaml" in _error(capsys, "generate", "--model", no, "--out", "x.png", "--sampler", no)
    assert "s_churn=-1" in _error(capsys, "generate", "--model", no, "--out", "x.png", "--set", "s_churn=-1")
    assert "no such tune space" in _error(capsys, "sweep", "--model", no, "--reference", no, "--space", no, "--out", no)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give --space SPACE, or --nfe BUDGETS"),
        (["--nfe", "5,x"], "--nfe 5,x is not allowed: whole numbers of network evaluations, as in 5,8,10"),
        (["--nfe", "5,"], "--nfe 5, is not allowed"),
        (["--nfe", "0,8"], "--nfe 0 is not allowed"),
        (["--nfe", "8,1"], "--nfe 1 is not allowed: the solvers of any-budget take 2 network evaluations or more"),
        (["--nfe", "8", "--objective", "fid,nfe"], "--objective fid,nfe is not allowed with --nfe"),
        (["--nfe", "8", "--space", "tune_spaces/cifar10-steps.yaml"], "search.num_steps is not allowed with --nfe"),
    ],
)
def test_budgets_that_cannot_be_searched_are_one_line_before_anything_starts(capsys, tmp_path, options, says):
    no = str(tmp_path / "no")
    assert says in _error(capsys, "sweep", "--model", no, "--reference", no, "--out", no, "--workers", "1", *options)
    assert not (tmp_path / "no").exists() and ("ray" not in sys.modules or not sys.modules["ray"].is_initialized())


def test_a_row_of_a_sampler_file_is_asked_for_by_a_budget(capsys, tmp_path):
    (tmp_path / "best-samplers.yaml").write_text(
        "samplers:\n- {nfe: 5, sampler: {num_steps: 3}}\n- {nfe: 9, sampler: {num_steps: 5}}\n"
    )
    (tmp_path / "one.yaml").write_text("sampler: {num_steps: 4}\n")
    for place in (tmp_path, tmp_path / "best-samplers.yaml"):
        assert choose_settings(str(place), ["rho=5"], 8) == choose_settings(None, ["num_steps=3", "rho=5"])
        assert choose_settings(str(place), [], 9).num_steps == 5
    for options, says in (
        ([str(tmp_path)], "in best-samplers.yaml: give --nfe"),
        ([str(tmp_path / "best-samplers.yaml")], "give --nfe to take one"),
        ([str(tmp_path), "--nfe", "4"], "best-samplers.yaml has 5, 9"),
        ([str(tmp_path), "--nfe", "0"], "--nfe 0: give a number of evaluations, 1 or more"),
        ([str(tmp_path / "one.yaml"), "--nfe", "4"], "holds one sampler"),
        ([str(tmp_path / "no.yaml"), "--nfe", "4"], "it writes best-samplers.yaml"),
    ):
        assert says in _error(capsys, "generate", "--model", "m", "--out", "x.png", "--sampler", *options)
    assert "give --sampler SWEEP too; without a sweep give the number of steps, e.g. --set num_steps=3" in _error(
        capsys, "generate", "--model", "m", "--out", "x.png", "--nfe", "4"
    )


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (["sigmas=[1, 2]"], "sampler.sigmas=(1.0, 2.0) is not allowed: two noise levels or more, descending"),
        (["sigmas=[2, .nan]"], "sampler.sigmas=(2.0, nan) is not allowed"),
        (["sigmas=[9, 1]", "num_steps=3"], "sampler.num_steps=3 is not allowed: 2, the number of sigmas"),
        (["solver=euler", "num_steps=3", "gammas=[0.1]"], "sampler.gammas=(0.1,) is not allowed: 3 numbers"),
        (["solver=ipndm", "num_steps=3"], "sampler.order=4 is not allowed: at most 3, the number of steps"),
        (["solver=unipc", "variant=bh"], "sampler.variant='bh' is not allowed: bh1 or bh2"),
        (["solver=deis", "schedule=vp"], "sampler.schedule='vp' is not allowed: linear with solver deis"),
        (["solver=sa_solver", "tau=.nan"], "sampler.tau=nan is not allowed: 0 or more"),
        (["solver=dpmpp_3n"], "did you mean 'dpmpp_3m'"),
        (["solver=heun", "order=3"], "solver heun has no such setting"),
    ],
)
def test_a_sampler_that_cannot_be_is_one_line_before_anything_starts(capsys, tmp_path, pairs, says):
    for command in ("generate", "evaluate"):
        needed = ["--reference", "x"] if command == "evaluate" else []
        text = _error(
            capsys,
            command,
            "--model",
            str(tmp_path / "no"),
            *needed,
            "--out",
            "x.png",
            "--workers",
            "1",
            "--set",
            *pairs,
        )
        assert says in text
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_a_dry_run_prints_the_plan_and_writes_nothing(capsys, digits_dir, tmp_path):
    data = ["train", "--data", str(digits_dir / "train"), "--out", str(tmp_path / "run"), "--preset", "digits"]
    assert main([*data, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "749,089 parameters" in text and "halflife_kimg: 4.0" in text and not (tmp_path / "run").exists()
    for line in ("128 images = 1 worker x 128", "500; 49.3 epochs", "GiB a worker (computed", "1 bundle of 1 CPU"):
        assert line in text
    assert "ms an image (measured here" in text
    (cost,) = (line for line in text.splitlines() if line.startswith("  cost"))
    assert "USD (assumed: at 0.048 USD an hour" in cost and ("under 0.01 USD" in cost or float(cost.split()[1]) < 1)
    assert main([*data, "--dry-run", "--workers", "2:3", "--set", "micro_batch=10"]) == 0
    assert "3 workers x 42 to 43, in 5 rounds of at most 10" in capsys.readouterr().out
    assert main([*data, "--dry-run", "--set", "threads=2"]) == 0
    assert "1 bundle of 2 CPUs" in capsys.readouterr().out


def test_generated_images_depend_on_their_seed_alone(digits_dir, tmp_path):
    run = str(tmp_path / "run")
    assert main(["train", "--data", str(digits_dir / "train"), "--out", run, "--preset", "tiny", "--no-ray"]) == 0
    model = ["generate", "--model", f"{run}/model", "--set", "num_steps=4", "s_churn=1"]
    assert main([*model, "--num", "60", "--out", str(tmp_path / "many")]) == 0
    assert main([*model, "--num", "3", "--seed", "55", "--out", str(tmp_path / "few")]) == 0
    for seed in (55, 56, 57):
        name = f"seed{seed:08d}.png"
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "few" / name).read_bytes()
    assert Image.open(tmp_path / "few" / "seed00000055.png").text["seed"] == "55"


def test_churn_above_its_cap_is_allowed_and_said_to_be_capped(capsys):
    assert choose_settings(None, ["num_steps=10", "s_churn=80"]).s_churn == 80
    assert "s_churn=80 acts as 4.142: it is capped" in capsys.readouterr().out
    choose_settings(None, ["num_steps=10", "s_churn=4"])
    assert capsys.readouterr().out == ""


def test_help_needs_neither_torch_nor_ray_and_is_quick():
    heavy = {"torch", "ray", "numpy", "pyarrow", "edm_ray.storage", "edm_ray.execution"}
    code = f"import sys; from edm_ray.cli import main; main(['--help']); print(sorted({heavy} & set(sys.modules)))"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and all(name in done.stdout for name in COMMANDS)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("command", ["train", "generate", "evaluate"])
def test_a_command_begins_without_what_only_some_runs_need(command):
    """scipy and scikit-learn take seconds: RK45, intervals and a race import them when they begin."""
    heavy = {"scipy", "sklearn", "ray", "matplotlib"}
    code = f"import sys, edm_ray.cli.{command}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_jobs_are_the_commands(capsys, monkeypatch):
    paths = list(Path("jobs").glob("*.py"))
    assert len(paths) >= 6
    for path in paths:
        monkeypatch.setattr(sys, "argv", [str(path), "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
        assert ended.value.code in (0, None) and f"edm-ray {path.stem}" in capsys.readouterr().out
        assert len(path.read_text().splitlines()) <= 25
    done = subprocess.run([sys.executable, "jobs/train.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "edm-ray train" in done.stdout


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_traceback():
    """`edm-ray presets tiny | head -1`"""
    command = [sys.executable, "-c", "from edm_ray.cli import main; raise SystemExit(main())", "presets", "tiny"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(120) == 141


def test_a_preset_is_shown_with_what_it_changes_and_the_source_of_every_number(capsys):
    assert main(["presets", "cifar10-cond-vp-d"]) == 0
    text = capsys.readouterr().out
    assert "changes cifar10-cond-vp-c:\n    denoiser.preconditioning.kind: 'vp' -> 'edm'\n" in text
    assert "V100 hours (assumed:" in text and "GiB a worker (computed:" in text and "x 64 images, fp32," in text
    assert main(["presets", "imagenet64-adm"]) == 0  # 4,096 images on 32 GPUs, in fp16
    text = capsys.readouterr().out
    assert "50.47 GiB a worker (assumed:" in text and "x 128 images, in fp16 half" in text
    assert "A100 hours (published:" in text and "27,356 USD (assumed:" in text
    assert "did you mean 'cifar10-cond-vp-d'" in _error(capsys, "presets", "cifar10-cond-vpd")


def test_sigterm_makes_a_checkpoint_and_the_same_command_resumes(digits_dir, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "edm_ray.cli.job", "train", "--data", str(digits_dir / "train"), "--out", str(run)]
    command += ["--preset", "tiny", "--no-ray", "--set", "total_kimg=50", "tick_kimg=0.24", "checkpoint_kimg=1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 143 and "checkpoint written; the same command resumes" in text
    assert len(list((run / "checkpoints").iterdir())) == 1
