"""What is asked of every node before a run starts, and what is made of the answers."""

from __future__ import annotations

import dataclasses
import time

import pytest

from edm_ray.distributed.cluster import node_check, nodes
from edm_ray.distributed.cluster.preflight import WorkerRequest, refusal
from edm_ray.distributed.cluster.probe import QuickReport, quick_probe
from edm_ray.distributed.cluster.storage_check import marked
from edm_ray.errors import InputError

OURS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cpu", "edm_ray": "0.1.0 (0123456789)"}
GOOD = QuickReport(node="10.0.0.2/bbbbbb", versions=OURS, storage="", unseen=())
WORK = WorkerRequest(what="training", count=2, cpus=1)
NODES = [
    {"NodeID": digit * 56, "Alive": True, "Resources": {"CPU": cpus}} for digit, cpus in (("a", 0), ("b", 1), ("c", 1))
]


def test_a_good_node_may_work_and_a_gpu_image_beside_a_cpu_image_too():
    assert node_check.why_unfit(GOOD, OURS) is None
    gpu = dataclasses.replace(GOOD, versions={**OURS, "torch": "2.13.0+cu128"})
    assert node_check.why_unfit(gpu, OURS) is None


@pytest.mark.parametrize("name", list(OURS))
def test_other_code_on_a_node_is_named_with_both_versions(name):
    other = dataclasses.replace(GOOD, versions={**OURS, name: "9.9.9"})
    message = node_check.why_unfit(other, OURS)
    assert f"10.0.0.2/bbbbbb: {name} is 9.9.9, here it is {OURS[name]}" in message and "one image" in message


def test_a_place_that_is_not_shared_or_not_seen_is_named_with_the_fix():
    message = node_check.why_unfit(dataclasses.replace(GOOD, storage="shared: /out is another place"), OURS)
    assert "10.0.0.2/bbbbbb" in message and "/out is another place" in message and "s3://" in message
    message = node_check.why_unfit(dataclasses.replace(GOOD, unseen=("/data/x", "/data/y")), OURS)
    assert "does not see /data/x, /data/y" in message and "s3://" in message


@pytest.fixture
def three_nodes(monkeypatch):
    """A head without CPUs, where this process runs, and two workers; returns who was asked and sets the answers."""
    asked, answers = [], {"b": GOOD, "c": GOOD}

    def ask(those, start, timeout):
        asked.extend(node["NodeID"][0] for node in those)
        given = {node["NodeID"]: answers[node["NodeID"][0]] for node in those}
        failed = {name: answer for name, answer in given.items() if isinstance(answer, str)}
        late = {name: "no answer in 20 s" for name, answer in given.items() if answer is None}
        heard = [nodes.Reply(name, answer, 0, 0) for name, answer in given.items() if isinstance(answer, QuickReport)]
        return nodes.Replies(heard, failed, late)

    class Here:
        def get_node_id(self):
            return "a" * 56

    monkeypatch.setattr(node_check, "ask_nodes", ask)
    monkeypatch.setattr(node_check, "living", lambda: NODES)
    monkeypatch.setattr(node_check, "versions", lambda: OURS)
    monkeypatch.setattr(node_check.ray, "get_runtime_context", Here)
    return asked, answers


def test_only_nodes_that_could_work_are_asked_and_nothing_stays_at_the_storage(three_nodes, tmp_path):
    asked, _ = three_nodes
    node_check.require_nodes(WORK, str(tmp_path))
    assert asked == ["b", "c"] and list(tmp_path.iterdir()) == []


def test_one_bad_node_is_enough(three_nodes, tmp_path):
    _, answers = three_nodes
    answers["c"] = dataclasses.replace(GOOD, node="10.0.0.3/cccccc", storage="write: denied")
    with pytest.raises(InputError, match=r"10\.0\.0\.3/cccccc and the results: write: denied"):
        node_check.require_nodes(WORK, str(tmp_path))
    answers["c"] = "ModuleNotFoundError: No module named 'edm_ray'"
    with pytest.raises(InputError, match="cccccc cannot run edm_ray: ModuleNotFoundError"):
        node_check.require_nodes(WORK, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_slow_node_is_no_reason_to_stop(three_nodes, tmp_path, caplog):
    _, answers = three_nodes
    answers["b"] = None
    node_check.require_nodes(WORK, str(tmp_path))
    assert "bbbbbb: no answer in 20 s" in caplog.text


def test_a_single_machine_is_not_asked_what_it_has_shown(three_nodes, tmp_path, monkeypatch):
    asked, _ = three_nodes
    monkeypatch.setattr(node_check, "living", lambda: [{**NODES[0], "Resources": {"CPU": 8}}])
    node_check.require_nodes(WORK, str(tmp_path))
    assert asked == []


@pytest.mark.parametrize(
    ("each", "have", "count"),
    [
        (0.75, 8, 8),
        (0.75, 0.75, 1),
        (0.75, 1.75, 2),
        (0.75, 0.5, 0),
        (0.9, 0, 0),
        (1 / 3, 8, 24),
        (0.3, 1.3, 4),
        (1.0, 8, 8),
    ],
)
def test_parts_of_gpus_are_counted_card_by_card(each, have, count):
    assert WorkerRequest(what="training", count=99, gpus=each).fits({"GPU": have, "CPU": 0}) == count
    assert WorkerRequest(what="training", count=99, gpus=each, cpus=4.0).fits({"GPU": have, "CPU": 4}) == min(count, 1)


def test_parts_of_cpus_are_counted_over_the_whole_node():
    assert WorkerRequest(what="training", count=99, cpus=0.75).fits({"CPU": 8}) == 10


def test_more_parts_than_cards_hold_are_refused_also_where_an_autoscaler_may_add_some(monkeypatch):
    ten = WorkerRequest(what="training", count=10, gpus=0.75)
    assert refusal(dataclasses.replace(ten, count=8), [{"GPU": 8.0}]) is None
    message = refusal(ten, [{"GPU": 8.0}])
    assert "hold 8 of 0.75 GPUs each" in message and "give --workers 8 or fewer" in message
    monkeypatch.setenv("EDM_RAY_MAX_GPUS", "8")
    assert "hold 8 of 0.75 GPUs each" in refusal(ten, [{"GPU": 8.0}])
    monkeypatch.setenv("EDM_RAY_MAX_GPUS", "10")
    assert refusal(ten, [{"GPU": 8.0}]) is None


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_nodes_answer_fail_or_are_late(tmp_path):
    def broken():
        raise OSError("the disk is gone")

    there = nodes.living()
    with marked(str(tmp_path)) as token:
        replies = nodes.ask_nodes(
            there, lambda node: nodes.on(node, quick_probe).remote(str(tmp_path), token, ("/no",))
        )
    heard = replies.heard
    assert [each.answer.storage for each in heard] == [""] and not replies.failed and not replies.late
    assert heard[0].answer.unseen == ("/no",) and heard[0].sent <= heard[0].received
    assert list(tmp_path.iterdir()) == []
    replies = nodes.ask_nodes(there, lambda node: nodes.on(node, broken).remote())
    assert not replies.heard and not replies.late and "the disk is gone" in replies.failed[there[0]["NodeID"]]
    started = time.monotonic()
    replies = nodes.ask_nodes(there, lambda node: nodes.on(node, lambda: time.sleep(8)).remote(), timeout=0.5)
    assert not replies.heard and not replies.failed and list(replies.late) == [there[0]["NodeID"]]
    assert time.monotonic() - started < 5
    assert nodes.wait_until_listed_nodes_answer(1.0) == []
