"""Ctrl-C, SIGTERM and closing the window, for the commands, in a terminal of their own."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from edm_ray.execution.stopping import GRACE_S, SAME_S
from tests.terminal import Terminal

CODES = {"key": 130, "kill": 143, "close": 129}
SLOWNESS = float(os.environ.get("EDM_RAY_TEST_SLOWNESS", "12"))
"""So many times as long is allowed as on a quiet machine: the one that runs the tests does other things too."""
FIRST_S, SILENCE_S, LIMIT_S = (SLOWNESS * seconds for seconds in (1.0, 3.0, 10.0))
"""The first word; the longest silence; to the end of a command that was asked to end."""
NEVER = ("Traceback", "***", "(raylet)", "core_worker", "has no winner", "Exception ignored")
TRAIN = "--preset tiny --set total_kimg=200 tick_kimg=0.48 checkpoint_kimg=1000"
SPACE = str(Path(__file__).parents[2] / "tune_spaces" / "digits.yaml")
SWEEP = (
    "--chunk-size 100 --initial-chunks 1 --max-chunks 2 --num-line 2 --num-global 2 --num-model 0 --confirm-chunks 2"
)
SLOW_SAMPLER = "--set num_steps=200"


@pytest.fixture(scope="module")
def model(digits_dir, tmp_path_factory) -> str:
    from edm_ray.cli import main

    run = str(tmp_path_factory.mktemp("run"))
    quick = "--preset tiny --workers 0 --set total_kimg=0.48 tick_kimg=0.48"
    assert main(f"train --data {digits_dir}/train --out {run} {quick}".split()) == 0
    return f"{run}/model"


def descendants(pid: int) -> set[int]:
    """Of a process, by /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def wait_until(terminal: Terminal, moment: str, then: float) -> None:
    if moment:
        terminal.until(moment, 300)
    end = terminal.now + then
    while terminal.now < end and terminal.read(0.02):
        pass
    assert terminal.code is None, f"it has ended before:\n{terminal.story}"


def interrupt(command: str, moment: str, then: float = 0.5, how: str = "key") -> Terminal:
    """Run a command to the moment and ask it to end; checks what holds for all of them."""
    with Terminal(*command.split()) as terminal:
        wait_until(terminal, moment, then)
        below = descendants(terminal.pid)
        asked_at = getattr(terminal, how)()
        code = terminal.wait(LIMIT_S)
        took = terminal.now - asked_at
    assert code == CODES[how], f"{code}:\n{terminal.story}"
    assert took < LIMIT_S, f"{took:.1f} s"
    assert not any(word in terminal.text for word in NEVER), terminal.story
    if how != "close":
        assert "stop" in terminal.text and ("resumes" in terminal.text or "nothing was" in terminal.text), (
            terminal.story
        )
    gone_by = time.monotonic() + LIMIT_S
    while (left := {pid for pid in below if Path(f"/proc/{pid}").exists()}) and time.monotonic() < gone_by:
        time.sleep(0.1)
    assert not left, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
    return terminal


def checkpoints(run: Path) -> list[int]:
    from edm_ray.training.run import checkpoint_store

    return checkpoint_store(str(run)).committed()


def test_ctrl_c_in_training_says_so_at_once_writes_a_checkpoint_and_says_how_to_resume(digits_dir, tmp_path):
    run = tmp_path / "run"
    command = f"train --data {digits_dir}/train --out {run} {TRAIN} --workers 0"
    with Terminal(*command.split()) as terminal:
        assert terminal.until(".", LIMIT_S) < FIRST_S, "the first word"
        wait_until(terminal, "images: [1-9]", 0.5)
        pressed = terminal.key()
        assert terminal.until("stopping: writing a checkpoint; again to leave now", LIMIT_S) - pressed < GRACE_S
        assert terminal.wait(LIMIT_S) == 130
        longest, at = terminal.silences()[0]
        assert longest < SILENCE_S, f"{longest:.1f} s of silence at {at:.1f} s"
    assert "checkpoint written; the same command resumes from there" in terminal.text
    (images,) = checkpoints(run)
    assert f"stopped at {images:,} images" in terminal.text


def test_ctrl_c_while_libraries_are_loaded_leaves_at_once_whatever_they_catch(tmp_path):
    with Terminal("train", "--data", str(tmp_path), "--out", str(tmp_path / "run")) as terminal:
        wait_until(terminal, "loading", 0.2)
        pressed = terminal.key()
        assert terminal.wait(LIMIT_S) == 130 and terminal.now - pressed < GRACE_S
    assert "stopped; nothing was begun" in terminal.text and "Traceback" not in terminal.text
    assert terminal.raw.rstrip().endswith("begun") and "\x1b[?25h" in terminal.raw, "the cursor is shown again"


# -- every command at every moment: minutes ----------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("how", CODES)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_training_keeps_what_it_has_done_however_it_is_ended_and_resumes_there(digits_dir, tmp_path, workers, how):
    run = tmp_path / "run"
    command = f"train --data {digits_dir}/train --out {run} {TRAIN} --workers {workers}"
    interrupt(command, "images: [1-9]", 2.0, how)
    (images,) = checkpoints(run)
    assert images > 0
    again = interrupt(command, f"resuming at {images:,} images", 0.1)
    assert checkpoints(run)[-1] >= images, again.story


@pytest.mark.fault
def test_training_that_was_stopped_again_and_again_while_it_saves_has_the_parameters_of_one_that_was_not(
    digits_dir, tmp_path
):
    """Each step is a tick and a checkpoint, so that it is always saving; ends at random moments, some at once."""
    from edm_ray.models.directory import load_model

    quick = "--preset tiny --set total_kimg=2.4 tick_kimg=0.024 checkpoint_kimg=0.024 --workers 0"
    calm, broken = tmp_path / "calm", tmp_path / "broken"
    with Terminal(*f"train --data {digits_dir}/train --out {calm} {quick}".split()) as terminal:
        assert terminal.wait(600) == 0

    def trained() -> int:
        return max((int(path.name.removeprefix("nimg-")) for path in broken.glob("checkpoints/nimg-*")), default=0)

    moments, stops = random.Random(0), 0
    while not (broken / "model" / "manifest.json").exists():
        with Terminal(*f"train --data {digits_dir}/train --out {broken} {quick}".split()) as terminal:
            terminal.until("images: |resuming|nothing was left", 300)
            last = trained() + moments.uniform(0.05, 0.3) * 2400  # images: seconds depend on the machine
            while trained() < last and terminal.read(0.05):
                pass
            if terminal.code is None:
                terminal.key()
                stops += 1
                while stops % 2 == 0 and "stopping" not in terminal.text and terminal.read(0.01):
                    pass
                terminal.watch(5 * SAME_S[signal.SIGINT])
                if stops % 2 == 0 and terminal.code is None:
                    terminal.key()
            assert terminal.wait(LIMIT_S) in (0, 130), terminal.story
            assert "Traceback" not in terminal.text, terminal.story
    assert stops >= 3
    one, other = (load_model(f"{run}/model").module.state_dict() for run in (calm, broken))
    assert all((one[name] == other[name]).all() for name in one)


MOMENTS = {"imports": ("loading", 0.3), "ray": ("starting Ray", 2.0), "workers": ("starting [0-9]+ ", 3.0)}


@pytest.mark.fault
@pytest.mark.parametrize("how", CODES)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["train", "sweep"])
def test_a_command_that_is_ended_while_it_starts_leaves_nothing_behind(
    digits_dir, digits_reference, model, tmp_path, name, moment, how
):
    commands = {
        "train": f"train --data {digits_dir}/train {TRAIN}",
        "sweep": f"sweep --model {model} --reference {digits_reference} --space {SPACE} {SWEEP}",
    }
    interrupt(f"{commands[name]} --out {tmp_path}/out --workers 2", *MOMENTS[moment], how)


@pytest.mark.fault
@pytest.mark.parametrize("how", CODES)
@pytest.mark.parametrize("name", ["prepare", "reference", "generate", "grid", "evaluate", "evaluate-ray", "sweep",
                                  "sweep-ray", "sweep-nfe", "demo"])  # fmt: skip
def test_work_is_kept_and_the_same_command_resumes(digits_dir, digits_reference, model, tmp_path, name, how):
    out = tmp_path / "out"
    against = f"--model {model} --reference {digits_reference}"
    evaluate = f"evaluate {against} --num 4000 {SLOW_SAMPLER} --out {out}"
    sweep = f"sweep {against} --space {SPACE} {SWEEP} --out {out}"
    command, moment = {
        "prepare": (f"prepare photographs {out} --resolution 32 --num 100000", "records: [1-9]"),
        "reference": (f"reference --data {digits_dir}/train --extractor self --out {out}", "the images: [1-9]"),
        "generate": (f"generate --model {model} --num 2000 {SLOW_SAMPLER} --out {out}", "chunks of images: [1-9]"),
        "grid": (f"generate --model {model} --num 1000 {SLOW_SAMPLER} --out {out}.png", "chunks of images: [1-9]"),
        "evaluate": (f"{evaluate} --workers 0", "chunks: [1-9]"),
        "evaluate-ray": (f"{evaluate} --workers 2", "chunks: [1-9]"),
        "sweep": (f"{sweep} --workers 0", "trial +1 "),
        "sweep-ray": (f"{sweep} --workers 2", "trial +1 "),
        "sweep-nfe": (f"sweep {against} --nfe 5,8 {SWEEP} --workers 2 --out {out}", "trial +1 "),
        "demo": (f"demo --quick --out {out}", "images: [1-9]|trained"),
    }[name]
    interrupt(command, moment, 0.3, how)
    if how == "key":
        with Terminal(*command.split()) as again:
            again.until("of [0-9,]+|trial", 300)
            if again.code is None:
                again.key()
            assert again.wait(LIMIT_S) in (0, 130), again.story
        assert not name.startswith("sweep") or "resuming: trials whose images are in " in again.text


@pytest.mark.fault
def test_sigterm_to_the_whole_group_of_processes_is_one_request_and_ray_s_are_not_hit(digits_dir, tmp_path):
    """As `timeout` and service managers do."""
    run = tmp_path / "run"
    command = f"train --data {digits_dir}/train --out {run} {TRAIN} --workers 2"
    with Terminal(*command.split()) as terminal:
        wait_until(terminal, "images: [1-9]", 1.0)
        os.kill(terminal.pid, signal.SIGTERM)
        os.killpg(terminal.pid, signal.SIGTERM)
        assert terminal.wait(LIMIT_S) == 143
    assert "checkpoint written" in terminal.text and len(checkpoints(run)) == 1
