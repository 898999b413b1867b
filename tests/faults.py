"""The fault matrix: what is broken, when, and how. Each cell names the tests that run it, says why it cannot be, or is
not run. `python -m tests.faults > docs/faults.md` writes the page; tests/docs/test_faults.py compares the two."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass

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
LEFT = f"{NODES}/test_frozen_node.py::test_a_training_leaves_a_frozen_node_and_ends_with_the_same_bits"

RULES = (
    impossible("worker, controller", "confirming", "*", "a training confirms nothing"),
    impossible("controller, queue", "saving, uploading", "*", "it writes nothing that a run keeps"),
    impossible("head", "saving, uploading", "*", "it takes no part in writing"),
    impossible("judge", "first step", "*", "it begins when the first chunks are there"),
    impossible("*", "start, first step, mid-tick, confirming", "full disk", "nothing is written then"),
    impossible("S3", "*", "full disk", "an object store has no disk of ours; a refusal is an error like others"),
    impossible("sampler, judge", "ending", "*", "they have nothing left to do; the command writes the report"),
    impossible("queue", "ending", "*", "nothing is asked of it any more"),
    impossible("controller, head, queue", "ending", "full disk", "it writes nothing that a run keeps"),
    # Trainings.
    rule("worker", "first step, mid-tick, saving, ending", "SIGKILL", TWO),
    rule("worker", "uploading", "SIGKILL", f"{WORKERS}::test_two_workers_killed_within_an_upload_to_s3_end_with_the_bits_of_a_calm_run"),
    rule("worker", "mid-tick", "SIGSTOP", STOPPED),
    rule("worker", "saving", "full disk", f"{TRAINING}::test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole_and_with_room_it_resumes", f"{OUTLIVE}::test_a_checkpoint_outlives_a_disk_for_longer_than_four_tries"),
    rule("worker", "uploading", "cut connection", f"{OUTAGE}::test_a_run_outlives_storage_and_has_the_bits_of_a_calm_one"),
    rule("driver", "first step, saving, ending", "SIGKILL", ANY),
    rule("driver", "mid-tick", "SIGKILL", f"{KILLS}::test_a_killed_driver_and_the_same_command_give_the_bits_of_a_calm_run", f"{POOL}::test_a_killed_driver_loses_no_chunk_and_the_same_command_ends_the_same"),
    rule("driver", "uploading", "SIGKILL", f"{TRAINING}::test_a_killed_upload_leaves_no_checkpoint_and_the_next_command_resumes"),
    rule("driver", "mid-tick", "SIGSTOP", "tests/storage/test_lease.py::test_a_writer_that_slept_finds_its_lease_gone_before_its_next_write"),
    rule("driver", "saving", "full disk", "tests/data/test_write_faults.py::test_a_full_disk_is_reported_and_nothing_is_half_published"),
    rule("controller", "mid-tick", "SIGKILL", f"{KILLS}::test_a_killed_controller_of_ray_train_is_outlived_by_the_command"),
    rule("controller", "mid-tick", "SIGSTOP", STOPPED),
    # Clusters.
    rule("raylet", "mid-tick", "SIGKILL", f"{NODES}/test_nodes.py::test_a_run_that_loses_a_node_continues_on_another_with_the_same_bits", f"{NODES}/test_nodes.py::test_a_sweep_that_loses_a_node_in_mid_trial_ends_with_the_same_result"),
    rule("raylet", "mid-tick", "SIGSTOP", LEFT),
    rule("raylet", "saving", "full disk", ROOM),
    rule("head", "mid-tick", "SIGKILL", f"{HEAD}::test_a_training_whose_head_dies_is_resumed_by_the_same_command_on_a_new_one", f"{HEAD}::test_a_sweep_whose_head_dies_makes_nothing_twice_on_a_new_one"),
    # Sweeps and evaluations.
    rule("sampler", "mid-tick", "SIGKILL", TWENTY),
    rule("sampler", "mid-tick", "SIGSTOP", SAMPLER, "tests/distributed/test_stuck_workers.py::test_a_stopped_worker_is_named_and_replaced_and_its_chunk_made_by_another"),
    rule("sampler, judge", "saving", "full disk", ROOM),
    rule("judge", "mid-tick", "SIGSTOP", f"{STUCK}::test_a_stopped_judge_is_replaced_and_the_fid_is_the_same"),
    rule("queue", "mid-tick", "SIGKILL", f"{POOL}::test_a_killed_dispatcher_starts_again_and_calls_under_way_end_well"),
    rule("queue", "mid-tick", "SIGSTOP", f"{STUCK}::test_a_stopped_dispatcher_is_started_again_and_the_work_ends_with_the_same_bits"),
    # Storage. SIGKILL: it is away. SIGSTOP: it accepts connections and says nothing.
    rule("S3", "start", "SIGKILL", f"{OUTAGE}::test_an_endpoint_that_never_answered_is_given_up_after_a_few_tries"),
    rule("S3", "saving, uploading", "SIGKILL", f"{OUTAGE}::test_a_run_outlives_storage_and_has_the_bits_of_a_calm_one", f"{OUTAGE}::test_a_run_whose_storage_stays_away_ends_in_a_line_and_resumes"),
    rule("S3", "mid-tick", "SIGKILL", f"{OUTAGE}::test_rows_of_metrics_wait_while_storage_is_away_and_come_before_the_next_checkpoint"),
    rule("S3", "mid-tick", "SIGSTOP", f"{S3}::test_a_silent_connection_is_closed_and_the_read_resumes"),
    rule("S3", "mid-tick", "cut connection", f"{S3}::test_a_read_resumes_where_its_connection_broke"),
    rule("S3", "uploading", "cut connection", f"{S3}::test_an_upload_that_fails_is_aborted_and_leaves_what_was_there"),
)  # fmt: skip


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
    """docs/faults.md."""
    known, reasons = sorted(tests()), sorted({each.impossible for each in RULES if each.impossible})
    number = counts()
    lines = [PREFACE.strip(), "", "## The matrix", ""]
    lines += [
        f"{len(cells())} cells: {number['run']} run by tests (T), {number['impossible']} impossible (-), "
        f"{number[NOT_RUN]} {NOT_RUN} (empty). `tests/faults.py` is the table; this page is written from it.",
        "",
        "Victims: " + "; ".join(f"**{name}**, {what}" for name, what in VICTIMS.items()) + ".",
        "Moments: " + "; ".join(f"**{name}**, {what}" for name, what in MOMENTS.items()) + ".",
        "For S3, SIGKILL means that it is away, SIGSTOP that it accepts connections and says nothing.",
    ]
    for kind in KINDS:
        lines += ["", f"### {kind}", "", f"| | {' | '.join(MOMENTS)} |", "|---|" + "---|" * len(MOMENTS)]
        lines += [f"| {victim} | " + " | ".join(_mark(victim, m, kind, known, reasons) for m in MOMENTS) + " |" for victim in VICTIMS]  # fmt: skip
    lines += ["", "### Tests", ""] + [f"- T{place}: `{name}`" for place, name in enumerate(known, 1)]
    lines += ["", "### Why not", ""] + [f"- -{place}: {why}" for place, why in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def _mark(victim: str, moment: str, kind: str, known: list[str], reasons: list[str]) -> str:
    found = decided((victim, moment, kind))
    if found is None:
        return ""
    if found.impossible:
        return f"-{reasons.index(found.impossible) + 1}"
    return " ".join(f"T{known.index(name) + 1}" for name in found.tests)


PREFACE = """
# Faults

What happens when something breaks, what is waited for, and which of it was tried. The same command always resumes.

## What is waited for

| what | how long | setting |
|---|---|---|
| a process that answers nothing: sampler, judge, dispatcher, rank, Ray Train's controller | named after 45 s (with a look at its node, within 60 s); a worker of a pool and the dispatcher are replaced at once, a rank and the controller after 45 s more | `EDM_RAY_SILENT_S` |
| a chunk or measurement that takes long | 10 times the slowest of the last 50 for its size (evaluations of the network, images), at least 67.5 s; then another worker gets it too, and the first to end counts. After as long again its worker is replaced, and the bound doubles for it. Before any is known, and for a set-up: 30 min | `EDM_RAY_LATE_FACTOR` |
| a step that takes long | named after 10 times the slowest of the last 50 steps, at least 45 s, with the line of code the rank is at; the group starts again from its checkpoint after 12 min (and 10 times the longest pause so far), not while a rank waits for storage. Before the first step: named after 15 min, ended after 30 | `EDM_RAY_RESTART_S` |
| collectives (gloo, NCCL) | 31.5 min: the watch acts first | follows from the above |
| storage that has answered before, also a local disk that is full or away | 10 min | `EDM_RAY_STORAGE_PATIENCE_S` |
| one S3 connection | 10 s to open, 30 s for the next bytes, then another | |
| another writer of the same folder | refused within 10 s, and told who holds it | |
| Ray's head | Ray ends the command about 60 s after the head stopped answering; a line says before what that means | |

What is said names who (rank or pool), host, process and since when, and for ranks the last step:
```
rank 1 of 2 on node-a, process 11021: has not answered since 00:13:53 (46 s); last step 82 of this start (1,968 images); it is ended in 44 s, and the group starts again from its checkpoint
sampling: the worker on node-a, process 4711: has not answered since 14:03:12 (45 s); it is replaced, and chunk 5ac1... handed to another
```
Bits stay the same: a chunk is decided by its key, and a group resumes from its checkpoint. A chunk's key holds the hashes of model, guide and
extractor, sampler, seeds, labels, precision, device and code; so it carries all the identity that it needs, and a model directory that is replaced during
a sweep changes nothing in it: workers have the model that was opened, `--export` into the replaced directory is refused, and the same command
afterwards uses no chunk of the other model (`tests/tasks/test_model_replaced.py`).

Signs of life cost a key of Ray's own store every 2 s for each rank, and a call every 5 s for each worker of a pool. Who is named is decided in
`edm_ray/distributed/group_watch.py` and `dispatcher.py`, with clocks that tests make up (`tests/distributed/test_group_watch.py`, `test_stuck_workers.py`).

## The head dies

Measured with a head without CPUs and a node with two, on one machine with two busy cores (single runs, 2026-11-27): after SIGKILL of the GCS a
training's command ended after 4 s and a sweep's after 60 and 61 s, both with code 1 and in Ray's own words (Ray ends the process; nothing can be cleaned up). The same
command on a new head resumed: equal parameters and metrics, equal decisions, no chunk made twice. A node that was frozen (SIGSTOP of raylet and workers, health
checks of seconds): 53 s to the next checkpoint on another node.

## What does not hold

- A trial process of Ray Tune that is stopped (it only waits for its FID) holds up its one evaluation until it continues.
- A process that is stopped between its start and its first answer is waited for as though it had no room yet.
- A driver that is stopped is nobody's to name; its lease goes to the next writer, and its workers stop before their next write.
- A cached file of decoded pixels that is changed on disk *after* it was checked (when it is opened, or in the first minutes for large ones) is
  not found before the next command opens it: rows are read one by one, and a checksum a block would read the block for each.
"""


if __name__ == "__main__":
    sys.stdout.write(page())
