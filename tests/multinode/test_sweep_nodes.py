"""A sweep on two nodes: at least eight trials in flight, images made on both."""

from __future__ import annotations

import json

import pytest

from edm_ray.cli import main
from tests.jobs.heads import add_node, descendants, running_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]
# Six hundred images a trial: on a busy machine the first must not be over before the eighth has started.
SIZES = [
    *("--strategy", "random", "--num-global", "10", "--chunk-size", "50", "--initial-chunks", "12"),
    *("--max-chunks", "12", "--confirm-chunks", "1", "--grid", "10", "--workers", "2", "--concurrent", "8"),
]


def test_eight_trials_are_in_flight_on_two_nodes(digits_dir, tmp_path_factory, tmp_path):
    """The head has no CPU and each node one, so two samplers are on two nodes; trials go where there is room."""
    data, run, reference, out = digits_dir / "train", tmp_path / "run", tmp_path / "reference", tmp_path / "sweep"
    assert main(["train", "--data", str(data), "--out", str(run), "--preset", "tiny", "--no-ray"]) == 0
    assert main(["reference", "--data", str(data), "--out", str(reference), "--extractor", "digits"]) == 0
    with running_head(tmp_path_factory.mktemp("cluster"), cpus=0) as head:
        for _ in range(2):
            add_node(head, 1)
        command = ["sweep", "--model", str(run / "model"), "--reference", str(reference), *SIZES]
        driver = head.start(*command, "--space", "tune_spaces/digits.yaml", "--out", str(out))
        seen: set[int] = set()
        while driver.poll() is None:
            for node in head.extra:
                if any("ray::Worker.make" in title for title in descendants(node.pid).values()):
                    seen.add(node.pid)
        assert driver.returncode == 0, head.log.with_name("driver.log").read_text()
    assert len(seen) == 2, "both nodes made images"
    ended = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert len(ended) >= 14
    times = [(row["timestamp"] - row["time_total_s"], row["timestamp"]) for row in ended]
    assert max(sum(begun <= moment < end for begun, end in times) for moment, _ in times) >= 8
    assert len({row["pid"] for row in ended}) >= 8
