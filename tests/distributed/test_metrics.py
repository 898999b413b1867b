"""What trainings, sweeps and pools tell Ray's metrics, and what the dashboard draws of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edm_ray.distributed import metrics
from edm_ray.distributed.metrics import BEST_FID, ENDED, LOSS, MEASURES, QUEUE, tell, tell_tick

BOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "edm-ray.json"


@pytest.fixture
def told(monkeypatch) -> list:
    """(name, value, tags) of what is told."""
    found = []

    class Gauge:
        def __init__(self, name, description, tag_keys):
            self.name, self.keys = name, set(tag_keys)

        def set(self, value, tags):
            assert set(tags) == self.keys
            found.append((self.name, value, tags))

    monkeypatch.setattr(metrics, "_gauge", lambda measure: Gauge(measure.name, measure.about, (measure.tag,)))
    return found


def test_the_dashboard_draws_every_measure_and_nothing_else():
    expressions = [target["expr"] for panel in json.loads(BOARD.read_text())["panels"] for target in panel["targets"]]
    drawn = {re.search(r"ray_(edm_ray_\w+)", each)[1]: re.search(r"by \((\w+)\)", each)[1] for each in expressions}
    assert drawn == {each.name: each.tag for each in MEASURES}


def test_a_tick_tells_speed_images_and_loss(told):
    tell_tick({"nimg": 480, "images_per_s": 12.5, "loss": 3.0, "lr": 1.0}, "s3://b/run")
    assert told == [
        ("edm_ray_images_per_second", 12.5, {"run": "s3://b/run"}),
        ("edm_ray_images_seen", 480.0, {"run": "s3://b/run"}),
        ("edm_ray_loss", 3.0, {"run": "s3://b/run"}),
    ]
    tell(LOSS, float("nan"), "run")
    assert len(told) == 3


def test_a_searcher_tells_the_best_fid_so_far(told):
    from edm_ray.distributed.sweep import DriverSearcher

    searcher = DriverSearcher(driver=None, on_trial=lambda result: None, out="sweep")
    for fid in (5.0, 7.0, 4.0):
        estimate = type("Estimate", (), {"fid": fid})()
        searcher._tell(type("Result", (), {"estimate": estimate})())
    searcher._tell(type("Result", (), {"estimate": None})())
    assert [value for name, value, _ in told if name == BEST_FID.name] == [5.0, 5.0, 4.0]
    assert [value for name, value, _ in told if name == ENDED.name] == [1, 2, 3, 4]


def test_metrics_that_fail_stop_nothing(monkeypatch):
    def broken(measure):
        raise RuntimeError("no agent")

    monkeypatch.setattr(metrics, "_gauge", broken)
    tell(QUEUE, 3, "sampling")


SCRIPT = """
import re, socket, time, urllib.request
import ray
from edm_ray.distributed.metrics import IMAGES_SEEN, tell
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
ray.init("local", include_dashboard=False, num_cpus=1, logging_level="ERROR", _metrics_export_port=port)
tell(IMAGES_SEEN, 1234, "the run")
where, ends = f"http://{ray.nodes()[0]['NodeManagerAddress']}:{port}/metrics", time.monotonic() + 90
found = []
while not found and time.monotonic() < ends:
    time.sleep(1)
    try:
        text = urllib.request.urlopen(where, timeout=10).read().decode()
    except OSError:
        continue
    found = re.findall(r'^ray_edm_ray_images_seen{.*run="the run".*} ([0-9.]+)$', text, re.M)
print(found)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_ray_hands_them_out_on_the_port_that_prometheus_reads():
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "['1234.0']", done.stderr
