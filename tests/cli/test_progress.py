"""What a command shows of its work: the words, the rate, and how often where nobody sees a live line."""

from __future__ import annotations

import io

import pytest

from edm_ray.cli import main, progress
from edm_ray.cli.progress import Progress, Screen, is_terminal, showing
from edm_ray.errors import InputError
from edm_ray.execution import activity


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_time_left_count_what_is_done_within_a_piece_of_work(clock, capsys):
    screen = Screen()
    screen.update(0, 4, "chunks", "")
    for call in range(1, 11):
        clock[0] += 1.0
        screen.within(call, 20, "network call")
    assert screen.rate() == pytest.approx(0.05), "half a chunk in ten seconds"
    assert screen.words() == "chunks: 0 of 4 (network call 10 of 20), 1 min 10 s left"
    assert "network call 5 of 20" in capsys.readouterr().out, "also before the first chunk has ended"


def test_a_part_of_a_chunk_is_not_taken_for_a_part_of_an_image(clock):
    """A sweep counts images, and 3,000 come at once."""
    screen = Screen()
    screen.count(0, 30_000, "images")
    for chunk in range(1, 4):
        for call in range(1, 11):
            clock[0] += 1.0
            screen.within(call, 10, "network call")
        assert "left" in screen.words() or chunk == 1
        clock[0] += 1.0
        screen.count(3000 * chunk, 30_000, "images")
    clock[0] += 5.0
    screen.within(2, 10, "network call")
    assert screen.rate() == pytest.approx(3000 / 11)
    assert screen.words() == "images: 9,000 of 30,000 (network call 2 of 10), 1 min 17 s left"


def test_a_part_of_something_without_a_name_is_shown_alone(clock):
    screen = Screen()
    screen.within(2, 10, "network call")
    assert screen.words() == "network call 2 of 10"


def test_after_the_last_piece_of_work_the_line_says_that_it_is_finishing_and_for_how_long(clock):
    screen = Screen()
    screen.stage("sampling")
    clock[0] += 60.0
    screen.update(3, 3, "chunks", "")
    clock[0] += 4.0
    assert screen.words() == "finishing (4 s)", "not a spinner alone, nor the time since the work began"


def test_plain_lines_come_seldom_and_the_first_and_last_always(clock, capsys):
    screen = Screen()
    for done in range(1001):
        screen.update(done, 1000, "images", "")
        clock[0] += 1.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  images: 0 of 1,000" and lines[-1] == "  images: 1,000 of 1,000"
    assert 30 <= len(lines) <= 80, "every 5 s at first, every 30 s later"


def test_a_stage_is_said_once_and_a_new_one_forgets_the_counts_of_the_last(clock, capsys):
    screen = Screen()
    for _ in range(3):
        screen.stage("starting Ray, about 15 s")
    assert capsys.readouterr().out == "  starting Ray, about 15 s\n"
    screen.count(1, 2, "chunks")
    screen.stage("measuring against the reference")
    clock[0] += 5
    assert screen.words() == "measuring against the reference (5 s)"


def test_after_the_end_was_asked_for_nothing_else_is_shown(clock, capsys):
    screen = Screen()
    screen.end("stopping")
    screen.stage("starting Ray, about 15 s")
    screen.update(5, 10, "chunks", "")
    screen.count(5, 10, "chunks")
    screen.within(5, 10, "network call")
    assert screen.words() == "stopping" and capsys.readouterr().out == ""


def test_work_is_shown_on_the_screen_of_the_command_around_it():
    assert not activity.is_shown()
    with showing():
        outer = progress.screen()
        with showing():
            assert progress.screen() is outer
            Progress("chunks").update(1, 2)
        assert outer.words() == "chunks: 1 of 2"
    assert not activity.is_shown()


def test_a_live_line_needs_a_terminal_that_rewrites_lines(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal(Terminal()) and not is_terminal(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Terminal())


def test_sampling_says_how_many_calls_of_the_network_are_done(digits_dir, tmp_path, capsys, monkeypatch):
    run, seen = str(tmp_path / "run"), []
    quick = "--preset tiny --workers 0 --set total_kimg=0.024 tick_kimg=0.024"
    assert main(f"train --data {digits_dir}/train --out {run} {quick}".split()) == 0
    monkeypatch.setattr(Screen, "within", lambda self, done, total, unit: seen.append((done, total, unit)))
    assert main(f"generate --model {run}/model --num 60 --out {tmp_path}/grid.png --set num_steps=5".split()) == 0
    calls = {unit for _, _, unit in seen}
    assert calls == {"network call"} and [done for done, _, _ in seen] == [*range(1, 10), *range(1, 10)]
    assert {total for _, total, _ in seen} == {9}, "5 steps of Heun, the last of Euler; two chunks of 50"


@pytest.mark.parametrize("command", ["train", "evaluate", "sweep", "generate", "reference", "prepare"])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_more_workers_than_this_machine_holds_are_refused_at_once_also_by_a_dry_run(command, dry, capsys, monkeypatch):
    from edm_ray.cli.workers import choose_executor

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("EDM_RAY_LOCAL_CPUS", "2")
    given = {
        "train": "--data no --out no",
        "evaluate": "--model no --reference no --out no",
        "sweep": "--model no --reference no --out no",
        "generate": "--model no --out no",
        "reference": "--data no --out no",
        "prepare": "digits no",
    }[command]
    assert main([command, *given.split(), "--workers", "8", *dry]) == 2
    assert "--workers 8: this machine has 2 CPUs, and no cluster is named; give --workers 2" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    choose_executor("8", "cpu")
    monkeypatch.delenv("RAY_ADDRESS")
    choose_executor("2:8", "cpu")
    with pytest.raises(InputError, match="--workers 3:8"):
        choose_executor("3:8", "cpu")
