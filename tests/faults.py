"""The fault matrix: what is broken, when, and how. Each cell names the tests that run it, says why it cannot be, or is
not run. `python -m tests.faults` writes the end of docs/faults.md anew; tests/docs/test_faults.py compares the two."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

VICTIMS = {
    "worker": "a rank of a training",
    "driver": "the command",
    "controller": "Ray Train's controller",
    "raylet": "a node: its raylet, with all its workers",
    "head": "Ray's head (GCS)",
    "sampler": "a worker of the sampling pool",
    "judge": "a worker of the measuring pool",
    "queue": "the pool's dispatcher",
    "S3": "the object store",
}
MOMENTS = {
    "start": "before there is anything to lose",
    "first step": "or the first chunk",
    "mid-tick": "or in the middle of a chunk",
    "saving": "a checkpoint, chunk or row, to a disk",
    "uploading": "the same to S3",
    "confirming": "a sweep's fresh seeds",
    "ending": "the model, the report",
}
KINDS = ("SIGKILL", "SIGSTOP", "cut connection", "full disk")
NOT_RUN = "not run"
PAGE, HEADING = Path(__file__).parents[1] / "docs" / "faults.md", "## The matrix"
Cell = tuple[str, str, str]


@dataclass(frozen=True)
class Rule:
    """Of all cells of these victims, moments and kinds that no rule before it has decided."""

    victims: str
    """With commas between; * for all."""
    moments: str
    kinds: str
    tests: tuple[str, ...] = ()
    """file::name."""
    impossible: str = ""
    """Why it cannot be."""

    def covers(self, cell: Cell) -> bool:
        chosen = (self.victims, self.moments, self.kinds)
        return all(part == "*" or value in part.split(", ") for value, part in zip(cell, chosen, strict=True))


def rule(victims: str, moments: str, kinds: str, *tests: str) -> Rule:
    return Rule(victims, moments, kinds, tests)


def impossible(victims: str, moments: str, kinds: str, why: str) -> Rule:
    return Rule(victims, moments, kinds, impossible=why)


TRAINING, WORKERS = "tests/training/test_faults.py", "tests/training/test_worker_faults.py"
KILLS, POOL = "tests/distributed/test_training_kills.py", "tests/distributed/test_pool.py"
STUCK, HEAD, NODES = "tests/distributed/test_stuck_on_ray.py", "tests/multinode/test_head_dies.py", "tests/multinode"
OUTAGE, S3, OUTLIVE = "tests/storage/test_outage.py", "tests/storage/test_s3.py", "tests/storage/test_outlive.py"
TWO = f"{WORKERS}::test_two_workers_of_which_one_or_both_are_killed_end_with_the_bits_of_a_calm_run"
ANY = f"{TRAINING}::test_a_run_killed_at_any_moment_ends_with_the_bits_of_a_calm_one"
STOPPED = f"{STUCK}::test_a_stopped_process_of_a_training_is_named_and_the_run_resumes_with_the_same_bits"
SAMPLER = f"{STUCK}::test_a_stopped_sampler_is_replaced_and_its_chunk_has_the_same_bits"
TWENTY = f"{POOL}::test_twenty_evaluations_with_samplers_killed_at_random_have_the_fids_of_calm_ones"
ROOM = f"{OUTLIVE}::test_a_chunk_is_written_when_the_disk_has_room_again"
ANYWHERE = "tests/storage/test_matrix_s3.py::test_storage_that_is_struck_at_any_moment_changes_no_bit"
TRAINED = (
    "tests/distributed/test_matrix_training.py::"
    "test_a_process_of_a_training_that_is_struck_at_any_moment_changes_no_bit"
)
POOLED = "tests/distributed/test_matrix_pools.py::test_a_process_of_a_pool_that_is_struck_at_any_moment_changes_no_bit"
CONFIRMING = "tests/distributed/test_matrix_sweeps.py::test_a_sweep_that_is_struck_while_it_confirms_decides_the_same"
ALL, STOP_OR_CUT = "SIGKILL, SIGSTOP, cut connection", "SIGSTOP, cut connection"
RUN_IN_TRAININGS = (
    ("worker", "start", ALL),
    ("worker", "first step, saving, ending", STOP_OR_CUT),
    ("worker", "mid-tick", "cut connection"),
    ("worker", "uploading", "SIGSTOP"),
    ("driver", "start", ALL),
    ("driver", "first step, saving, uploading, ending", STOP_OR_CUT),
    ("driver", "mid-tick", "cut connection"),
    ("controller", "start, first step, ending", ALL),
    ("controller", "mid-tick", "cut connection"),
    ("raylet", "start, first step, saving, uploading, ending", ALL),
    ("raylet", "mid-tick", "cut connection"),
    ("head", "start, first step, ending", ALL),
    ("head", "mid-tick", STOP_OR_CUT),
)
RUN_IN_POOLS = (
    ("sampler", "start, first step, mid-tick, saving, uploading, confirming", ALL),
    ("judge", "start, mid-tick, saving, uploading, confirming", ALL),
    ("queue", "start, first step, mid-tick, confirming", ALL),
)
RUN_IN_SWEEPS = (("driver, raylet, head", "confirming", ALL),)
LEFT = f"{NODES}/test_frozen_node.py::test_a_training_leaves_a_frozen_node_and_ends_with_the_same_bits"

RULES = (
    impossible("worker, controller", "confirming", "*", "a training confirms nothing"),
    impossible("controller, queue", "saving, uploading", "*", "it writes nothing that a run keeps"),
    impossible("head", "saving, uploading", "*", "it takes no part in writing"),
    impossible("judge", "first step", "*", "it begins when the first chunks are there"),
    impossible("*", "start, first step, mid-tick, confirming", "full disk", "nothing is written then"),
    impossible("S3", "*", "full disk", "an object store has no disk of ours; a refusal is an error like others"),
    impossible("*", "uploading", "full disk", "what is uploaded is sent from memory"),
    impossible("sampler, judge", "ending", "*", "they have nothing left to do; the command writes the report"),
    impossible("queue", "ending", "*", "nothing is asked of it any more"),
    impossible("controller, head, queue", "ending", "full disk", "it writes nothing that a run keeps"),
    # Trainings.
    rule("worker", "first step, mid-tick, saving, ending", "SIGKILL", TWO),
    rule(
        "worker",
        "uploading",
        "SIGKILL",
        f"{WORKERS}::test_two_workers_killed_within_an_upload_to_s3_end_with_the_bits_of_a_calm_run",
    ),
    rule("worker", "mid-tick", "SIGSTOP", STOPPED),
    rule(
        "worker",
        "saving",
        "full disk",
        f"{TRAINING}::test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole_and_with_room_it_resumes",
        f"{OUTLIVE}::test_a_checkpoint_outlives_a_disk_for_longer_than_four_tries",
    ),
    rule(
        "worker", "uploading", "cut connection", f"{OUTAGE}::test_a_run_outlives_storage_and_has_the_bits_of_a_calm_one"
    ),
    rule("driver", "first step, saving, ending", "SIGKILL", ANY),
    rule(
        "driver",
        "mid-tick",
        "SIGKILL",
        f"{KILLS}::test_a_killed_driver_and_the_same_command_give_the_bits_of_a_calm_run",
        f"{POOL}::test_a_killed_driver_loses_no_chunk_and_the_same_command_ends_the_same",
    ),
    rule(
        "driver",
        "uploading",
        "SIGKILL",
        f"{TRAINING}::test_a_killed_upload_leaves_no_checkpoint_and_the_next_command_resumes",
    ),
    rule(
        "driver",
        "mid-tick",
        "SIGSTOP",
        "tests/storage/test_lease.py::test_a_writer_that_slept_finds_its_lease_gone_before_its_next_write",
    ),
    rule(
        "driver",
        "saving",
        "full disk",
        "tests/data/test_write_faults.py::test_a_full_disk_is_reported_and_nothing_is_half_published",
    ),
    rule(
        "controller",
        "mid-tick",
        "SIGKILL",
        f"{KILLS}::test_a_killed_controller_of_ray_train_is_outlived_by_the_command",
    ),
    rule("controller", "mid-tick", "SIGSTOP", STOPPED),
    # Clusters.
    rule(
        "raylet",
        "mid-tick",
        "SIGKILL",
        f"{NODES}/test_nodes.py::test_a_run_that_loses_a_node_continues_on_another_with_the_same_bits",
        f"{NODES}/test_nodes.py::test_a_sweep_that_loses_a_node_in_mid_trial_ends_with_the_same_result",
    ),
    rule("raylet", "mid-tick", "SIGSTOP", LEFT),
    rule("raylet", "saving", "full disk", ROOM),
    rule(
        "head",
        "mid-tick",
        "SIGKILL",
        f"{HEAD}::test_a_training_whose_head_dies_is_resumed_by_the_same_command_on_a_new_one",
        f"{HEAD}::test_a_sweep_whose_head_dies_makes_nothing_twice_on_a_new_one",
    ),
    # Sweeps and evaluations.
    rule("sampler", "mid-tick", "SIGKILL", TWENTY),
    rule(
        "sampler",
        "mid-tick",
        "SIGSTOP",
        SAMPLER,
        "tests/distributed/test_stuck_workers.py::test_a_stopped_worker_is_named_and_replaced_and_its_chunk_made_by_another",
    ),
    rule("sampler, judge", "saving", "full disk", ROOM),
    rule("judge", "mid-tick", "SIGSTOP", f"{STUCK}::test_a_stopped_judge_is_replaced_and_the_fid_is_the_same"),
    rule("queue", "mid-tick", "SIGKILL", f"{POOL}::test_a_killed_dispatcher_starts_again_and_calls_under_way_end_well"),
    rule(
        "queue",
        "mid-tick",
        "SIGSTOP",
        f"{STUCK}::test_a_stopped_dispatcher_is_started_again_and_the_work_ends_with_the_same_bits",
    ),
    # Storage. SIGKILL: it is away. SIGSTOP: it accepts connections and says nothing.
    rule("S3", "start", "SIGKILL", f"{OUTAGE}::test_an_endpoint_that_never_answered_is_given_up_after_a_few_tries"),
    rule(
        "S3",
        "saving, uploading",
        "SIGKILL",
        f"{OUTAGE}::test_a_run_outlives_storage_and_has_the_bits_of_a_calm_one",
        f"{OUTAGE}::test_a_run_whose_storage_stays_away_ends_in_a_line_and_resumes",
    ),
    rule(
        "S3",
        "mid-tick",
        "SIGKILL",
        f"{OUTAGE}::test_rows_of_metrics_wait_while_storage_is_away_and_come_before_the_next_checkpoint",
    ),
    rule("S3", "mid-tick", "SIGSTOP", f"{S3}::test_a_silent_connection_is_closed_and_the_read_resumes"),
    rule("S3", "mid-tick", "cut connection", f"{S3}::test_a_read_resumes_where_its_connection_broke"),
    rule("S3", "uploading", "cut connection", f"{S3}::test_an_upload_that_fails_is_aborted_and_leaves_what_was_there"),
    rule("S3", "start", "SIGSTOP, cut connection", ANYWHERE),
    rule("S3", "first step, saving, uploading, confirming, ending", "SIGKILL, SIGSTOP, cut connection", ANYWHERE),
    rule(
        "worker, driver, raylet",
        "ending",
        "full disk",
        f"{TRAINING}::test_a_full_disk_at_the_end_keeps_the_run_and_with_room_the_model_is_written",
    ),
    # Each process of a training and of a pool, at a gate (tests/gates): only what has been run and passed.
    *(rule(*cell, TRAINED) for cell in RUN_IN_TRAININGS),
    *(rule(*cell, POOLED) for cell in RUN_IN_POOLS),
    *(rule(*cell, CONFIRMING) for cell in RUN_IN_SWEEPS),
)


def cells() -> list[Cell]:
    return list(itertools.product(VICTIMS, MOMENTS, KINDS))


def decided(cell: Cell) -> Rule | None:
    """None: not run."""
    return next((each for each in RULES if each.covers(cell)), None)


def tests() -> set[str]:
    return {name for each in RULES for name in each.tests}


def counts() -> dict[str, int]:
    found = {"run": 0, "impossible": 0, NOT_RUN: 0}
    for cell in cells():
        each = decided(cell)
        found[NOT_RUN if each is None else "impossible" if each.impossible else "run"] += 1
    return found


def page() -> str:
    """The end of docs/faults.md, from its heading on."""
    known, reasons = sorted(tests()), sorted({each.impossible for each in RULES if each.impossible})
    number = counts()
    lines = [HEADING, ""]
    lines += [
        f"{len(cells())} cells: {number['run']} run by tests (T), {number['impossible']} impossible (-), "
        f"{number[NOT_RUN]} {NOT_RUN} (empty). `tests/faults.py` is the table, and writes this part of the page.",
        "",
        "Victims: " + "; ".join(f"**{name}**, {what}" for name, what in VICTIMS.items()) + ".",
        "Moments: " + "; ".join(f"**{name}**, {what}" for name, what in MOMENTS.items()) + ".",
        "For S3, SIGKILL means that it is away, SIGSTOP that it accepts connections and says nothing.",
    ]
    for kind in KINDS:
        lines += ["", f"### {kind}", "", f"| | {' | '.join(MOMENTS)} |", "|---|" + "---|" * len(MOMENTS)]
        for victim in VICTIMS:
            marks = [_mark((victim, moment, kind), known, reasons) for moment in MOMENTS]
            lines.append(f"| {victim} | {' | '.join(marks)} |")
    lines += ["", "### Tests", ""] + [f"- T{place}: `{name}`" for place, name in enumerate(known, 1)]
    lines += ["", "### Why not", ""] + [f"- -{place}: {why}" for place, why in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def _mark(cell: Cell, known: list[str], reasons: list[str]) -> str:
    found = decided(cell)
    if found is None:
        return ""
    if found.impossible:
        return f"-{reasons.index(found.impossible) + 1}"
    return " ".join(f"T{known.index(name) + 1}" for name in found.tests)


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(HEADING)[0] + page())
