"""What holds for every command: examples, --json, one name an option, completion."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from edm_ray.cli import COMMANDS, main, sweep
from edm_ray.cli.command import parse
from edm_ray.cli.completion import named_options
from edm_ray.cli.examples import EXAMPLES

ROOT = Path(__file__).parents[2]
WITHOUT_JSON = {"demo", "export-sampler", "completion"}
"""The demo prints other commands' lines, the others print what is asked for and nothing else."""


@pytest.fixture(scope="module")
def run(digits_dir, tmp_path_factory) -> Path:
    """A run that was stopped: its data set, 240 of 480 images, no model."""
    place = tmp_path_factory.mktemp("conventions") / "run"
    train = ["train", "--data", str(digits_dir / "train"), "--out", str(place), "--preset", "tiny", "--no-ray"]
    assert main([*train, "--snapshot-kimg", "0.096"]) == 0
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples_that_the_command_accepts(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out.partition("examples:\n")[2]
    assert printed.splitlines() == [f"  edm-ray {example}" for example in EXAMPLES[command]]
    for example in EXAMPLES[command]:
        words = shlex.split(example.partition(" > ")[0])
        assert words[0] == command
        parse(command, words[1:])


def test_every_command_that_reports_takes_json():
    without = {command for command in COMMANDS if "--json" not in named_options(command)}
    assert without == WITHOUT_JSON


def test_an_option_has_one_name_everywhere():
    options = {option for command in COMMANDS for option in named_options(command)}
    others = {"--count", "--samples", "--num-images", "--first-seed", "--seeds", "--crops", "--output", "--dataset"}
    assert not options & others and not [option for option in options if option.startswith("--no-no")]
    numbered = {command for command in COMMANDS if "--num" in named_options(command)}
    assert numbered >= {"prepare", "generate", "evaluate", "fid", "explain"}
    assert {command for command in COMMANDS if "--seed" in named_options(command)} == {"train", "generate", "sweep"}


@pytest.mark.parametrize("command", COMMANDS)
def test_completion_knows_the_options_that_help_shows(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out.partition("examples:\n")[0]
    named = set(re.findall(r"^\W*(?:-h, )?(--[a-z0-9][a-z0-9-]*)(?=  | [A-Z{[]|$)", shown, re.M))
    assert set(named_options(command)) <= named


def test_bash_completes_commands_options_and_files(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "edm-ray.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "photos").mkdir()

    def complete(*words: str) -> set[str]:
        ask = (
            f"cd {tmp_path}; . {script}; COMP_WORDS=({shlex.join(['edm-ray', *words])}); COMP_CWORD={len(words)}; "
            'COMPREPLY=(); _edm_ray; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        return set(found.stdout.split())

    assert complete("exp") == {"explain", "export", "export-sampler"}
    assert complete("train", "--no-") == {"--no-ray"} and complete("prepare", "--on") == {"--on-error"}
    assert complete("prepare", "pho") == {"photos"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_every_command(capsys, shell):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"\b{command}\b", text) for command in COMMANDS)


def _json(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err  # what is said for people
    return json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_json_is_all_of_standard_output(capsys, run, digits_dir, digits_reference, tmp_path):
    data, model = str(digits_dir / "heldout"), str(run / "model")
    prepared = _json(capsys, "prepare", "photographs", str(tmp_path / "p"), "--resolution", "8", "--num", "40")
    assert prepared["datasets"][0]["rows"] == 40 and sum(prepared["datasets"][0]["classes"].values()) == 40
    assert _json(capsys, "inspect", data)["damaged"] == []
    assert _json(capsys, "fid", data, digits_reference)["n"] == 500
    assert _json(capsys, "generate", "--model", model, "--num", "4", "--out", str(tmp_path / "g.png"))["num"] == 4
    evaluate = ["evaluate", "--model", model, "--reference", digits_reference, "--out", str(tmp_path / "e")]
    evaluate += ["--num", "100", "--workers", "0", "--set", "num_steps=2"]
    assert _json(capsys, *evaluate, "--dry-run")["images"] == 100
    assert _json(capsys, *evaluate)["samples"]["n"] == 100
    train = ["train", "--data", data, "--out", str(tmp_path / "r"), "--preset", "tiny", "--no-ray"]
    assert _json(capsys, *train, "--dry-run")["parameters"] == 41329


def test_a_snapshot_and_a_checkpoint_of_a_run_become_models(capsys, run, digits_dir, tmp_path):
    from edm_ray.models import open_model

    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped, ignore=shutil.ignore_patterns("snapshots", "model"))
    assert main(["export", str(stopped)]) == 0
    assert "at 240 of 240 images, from a checkpoint" in capsys.readouterr().out
    made = open_model(str(stopped / "model-000000000240"))
    assert made.hash == open_model(str(run / "model")).hash
    assert made.class_names == [str(i) for i in range(10)]
    snapshot = sorted((run / "snapshots").iterdir())[0]
    assert main(["export", str(run), str(tmp_path / "early"), "--nimg", str(int(snapshot.name))]) == 0
    assert open_model(str(tmp_path / "early")).hash == open_model(str(snapshot / "model")).hash
    for arguments, says in (
        ([str(run), str(tmp_path / "x"), "--nimg", "7"], "--nimg 7: "),
        ([str(tmp_path)], "no run; give the --out of edm-ray train"),
        ([str(run), str(tmp_path / "early")], "holds something already"),
        ([str(run / "model"), str(tmp_path / "x")], "is a model already"),
        ([str(run), "--format", "diffusers"], "give the folder to write"),
    ):
        assert main(["export", *arguments]) == 2
        assert says in capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "folder"), "--format", "diffusers"]) == 0
    assert (tmp_path / "folder" / "unet" / "config.json").exists()


def test_the_model_of_an_unfinished_run_is_asked_for_by_name(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert main(["generate", "--model", str(tmp_path / "run" / "model"), "--out", str(tmp_path / "x.png")]) == 2
    assert f"the run is not finished; `edm-ray export {tmp_path / 'run'}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "'optimizer.lr'"),
        ("halflife_kimg", "'ema.halflife_kimg'"),
        ("optimizer.probability", "'augment.probability'"),
        ("attn_resolutions", "'denoiser.network.attn_resolutions'"),
        ("learning_rat", ""),
        ("batchsize", "'batch_size'"),
        ("optimizer.lrr", "'lr'"),
        ("grad_clp", "'optimizer.grad_clip'"),
    ],
)
def test_set_finds_a_key_by_its_last_part(capsys, digits_dir, tmp_path, key, meant):
    train = ["train", "--data", str(digits_dir / "train"), "--out", str(tmp_path / "run"), "--preset", "tiny"]
    assert main([*train, "--set", f"{key}=1"]) == 2
    text = capsys.readouterr().err
    assert f"unknown key '{key}'" in text and (f"did you mean {meant}" in text if meant else "did you mean" not in text)


@pytest.mark.parametrize("option", ["--data", "--invert", "--neighbours"])
def test_pictures_that_were_not_prepared_are_never_written_into(capsys, run, tmp_path, option):
    pictures = tmp_path / "my photos" / "cats"
    pictures.mkdir(parents=True)
    (pictures / "a.png").write_bytes(b"x")
    folder, before = str(pictures.parent), sorted(tmp_path.rglob("*"))
    commands = {"--data": ["train", "--out", str(tmp_path / "run"), option, folder]}
    command = commands.get(
        option, ["generate", "--model", str(run / "model"), "--out", str(tmp_path / "x.png"), option, folder]
    )
    assert main(command) == 2
    text = capsys.readouterr().err
    assert f"edm-ray prepare '{folder}' data/'my photos', and give data/my photos" in text
    assert f"prepare SOURCE {folder}" not in text and sorted(tmp_path.rglob("*")) == before


def test_where_the_guides_write_is_ignored_by_git_and_by_jobs(tmp_path, capsys):
    from edm_ray.distributed.cluster.job_checks import EXCLUDES, RESULTS, upload_sizes

    places = [place.strip("/") for place in RESULTS]
    assert set(places) >= {"data", "refs", "evals", "sweeps", "runs"}
    ignored = subprocess.run(
        ["git", "check-ignore", *(f"{place}/x" for place in places)], cwd=ROOT, capture_output=True, text=True
    )
    if ignored.returncode != 128:  # in a clone
        assert ignored.stdout.split() == [f"{place}/x" for place in places]
        package = subprocess.run(["git", "check-ignore", "edm_ray/data/x", "edm_ray/models/x"], cwd=ROOT)
        assert package.returncode == 1
    for name in (*places, "edm_ray/data", "edm_ray/models"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file.py").write_text("x")
    travels = {path for _, path in upload_sizes(tmp_path)}
    assert travels == {"edm_ray/data/file.py", "edm_ray/models/file.py"} and "/data" in EXCLUDES


def test_a_sampler_in_a_folder_that_does_not_travel_is_refused_before_it_is_sent(tmp_path, capsys):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "best-sampler.yaml").write_text("sampler: {num_steps: 4}\n")
    command = ["submit", "--working-dir", str(tmp_path), "--", "generate", "--model", "/m", "--out", "/o"]
    assert main([*command, "--sampler", "sweeps/best-sampler.yaml"]) == 2
    assert "sweeps/ does not travel with a job; copy the file out of it" in capsys.readouterr().err


def test_the_command_that_a_report_repeats_holds_what_was_given_and_no_defaults() -> None:
    args = sweep.Args(model="my model", reference="r", out="o", nfe="5,8", more=sweep.SweepOptions(precision="bf16"))
    typed = "--model 'my model' --reference r --out o --nfe 5,8 --precision bf16"
    assert sweep.as_flags(args) == shlex.split(typed)
