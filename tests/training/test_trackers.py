"""Trackers get what metrics.jsonl gets, in the same remote run after a resume, and can stop nothing. W&B and MLflow by
stand-ins."""

from __future__ import annotations

import json
import struct
import sys
import threading
import types
from pathlib import Path

import pytest

from edm_ray.cli import main
from edm_ray.errors import InputError
from edm_ray.training import trackers
from edm_ray.training.metrics import read_metrics
from edm_ray.training.trackers import Tracking, numbers_of, parse_trackers
from tests.formats import without_format


def _rows(count: int, first: int = 1) -> list[dict]:
    return [{"nimg": 100 * i, "total": 900, "loss": 1.0 / i, "loss_by_sigma": [None, 0.5]} for i in range(first, count)]


class FakeWandb(types.ModuleType):
    """`wandb` with runs by id; `broken` calls of log raise."""

    def __init__(self, broken=()):
        super().__init__("wandb")
        self.runs, self.opened, self.finished, self.broken, self.calls = {}, [], [], set(broken), 0

    def init(self, **options):
        self.opened.append(options)
        rows = self.runs.setdefault(options["id"], [])

        def log(numbers, step):
            self.calls += 1
            if self.calls in self.broken:
                raise ConnectionError("no route to host")
            assert not rows or step > rows[-1][0], "W&B drops steps that go back"
            rows.append((step, numbers))

        return types.SimpleNamespace(log=log, finish=lambda exit_code: self.finished.append(exit_code))


class FakeMlflow(types.ModuleType):
    """`mlflow` with its client's calls that are used."""

    def __init__(self):
        super().__init__("mlflow")
        self.runs, self.parameters, self.status = {}, {}, []
        self.MlflowClient = lambda: self

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return name

    def create_run(self, experiment, run_name):
        own = f"{experiment}-{len(self.runs)}"
        self.runs[own] = []
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=own))

    def log_param(self, run, key, value):
        self.parameters[key] = value

    def update_run(self, run, status):
        self.status.append(status)

    def log_batch(self, run, metrics):
        self.runs[run] += metrics

    def set_terminated(self, run, status):
        self.status.append(status)


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def _send(run, rows, before=(), names=("wandb",), done=True):
    follow = Tracking(dict.fromkeys(names, ""), str(run), {"seed": 0}, list(before))
    for row in rows:
        follow.add(row)
    return follow.close(done)


def test_a_resumed_run_resumes_the_same_remote_run_and_rows_that_are_written_again_are_not_sent_again(wandb, tmp_path):
    """The second attempt repeats rows after its checkpoint."""
    _send(tmp_path, _rows(5), done=False)
    _send(tmp_path, _rows(8, 3), before=_rows(5))
    (rows,) = wandb.runs.values()
    assert [step for step, _ in rows] == [100, 200, 300, 400, 500, 600, 700] and wandb.finished == [1, 0]
    assert rows[0][1] == {"loss": 1.0, "loss_by_sigma/0.01-0.03": 0.5}  # a bin without images is left out
    assert wandb.opened[0]["id"] == wandb.opened[1]["id"] and wandb.opened[1]["resume"] == "allow"


def test_a_tracker_that_fails_is_named_once_counted_and_gets_the_next_rows(monkeypatch, tmp_path, caplog):
    fake = FakeWandb(broken=(2, 3))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (line,) = _send(tmp_path, _rows(5))
    assert line == "wandb: 2 rows sent, 2 failures (last: ConnectionError: no route to host)"
    assert [step for step, _ in next(iter(fake.runs.values()))] == [100, 400]
    assert len([record for record in caplog.records if "training continues" in record.getMessage()]) == 1


def test_a_tracker_that_is_new_to_a_run_gets_the_rows_that_it_has(wandb, tmp_path):
    _send(tmp_path, _rows(6, 4), before=_rows(4))
    (rows,) = wandb.runs.values()
    assert [step for step, _ in rows] == [100, 200, 300, 400, 500]


def test_a_tracker_that_hangs_holds_nothing_up(monkeypatch, tmp_path, wandb):
    never = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **options: never.wait(20))
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    (line,) = _send(tmp_path, _rows(3))
    never.set()
    assert "did not end within 0 s" in line


def test_mlflow_gets_settings_and_metrics_at_images_seen_and_the_run_is_resumed(monkeypatch, tmp_path):
    fake, entities = FakeMlflow(), types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    _send(tmp_path, _rows(2), names=("mlflow",), done=False)
    _send(tmp_path, _rows(3), before=_rows(2), names=("mlflow",))
    assert fake.runs == {"edm_ray-0": [("loss", 1.0, 100), ("loss_by_sigma/0.01-0.03", 0.5, 100)]
                         + [("loss", 0.5, 200), ("loss_by_sigma/0.01-0.03", 0.5, 200)]}  # fmt: skip
    assert fake.parameters == {"seed": 0} and fake.status == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]


def _scalars(folder: Path) -> dict[int, dict[str, float]]:
    """What TensorBoard's event files hold: records of length, checksum, bytes, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[int, dict[str, float]] = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            for value in event.summary.value:
                assert value.tag not in found.setdefault(event.step, {}), "sent twice"
                found[event.step][value.tag] = value.simple_value
            content = content[16 + size :]
    return found


def test_tensorboard_shows_the_rows_of_metrics_jsonl_of_a_run_and_of_its_longer_version(digits_dir, tmp_path, capsys):
    run = tmp_path / "run"
    for kimg in ("0.096", "0.24"):
        arguments = ["train", "--data", str(digits_dir / "train"), "--out", str(run), "--preset", "tiny", "--no-ray"]
        assert main([*arguments, "--track", "tensorboard", "--set", f"total_kimg={kimg}"]) == 0
    assert "tensorboard: 3 rows sent" in capsys.readouterr().out
    assert without_format(run) == [] and (run / "trackers.json").exists()
    shown, rows = _scalars(run / "tensorboard"), read_metrics(str(run))
    assert sorted(shown) == [row["nimg"] for row in rows]
    for row in rows:
        assert shown[row["nimg"]] == pytest.approx(numbers_of(row), rel=1e-6)


def test_a_new_start_is_a_new_remote_run(wandb, digits_dir, tmp_path):
    arguments = ["train", "--data", str(digits_dir / "train"), "--out", str(tmp_path / "r"), "--preset", "tiny"]
    for more in ([], ["--fresh"]):
        set_ = ["--set", "total_kimg=0.048"]
        assert main([*arguments, "--no-ray", "--track", "wandb=mine", *more, *set_]) == 0
    assert len(wandb.runs) == 2 and wandb.opened[0]["project"] == "mine"


def test_a_missing_package_an_unknown_name_and_tensorboard_on_s3_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"mlflow is not installed.*pip install 'edm_ray\[mlflow\]'"):
        parse_trackers(["mlflow"], "/run")
    with pytest.raises(InputError, match="did you mean 'wandb'"):
        parse_trackers(["wandbb"], "/run")
    with pytest.raises(InputError, match="--track tensorboard=FOLDER"):
        parse_trackers(["tensorboard"], "s3://bucket/run")
    assert parse_trackers(["tensorboard=/t"], "s3://bucket/run") == {"tensorboard": "/t"}


def test_the_real_mlflow_takes_it(monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'db'}")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'db'}")
    assert "failures" not in _send(tmp_path, _rows(4), names=("mlflow",))[0]
    own = json.loads((tmp_path / "trackers.json").read_text())["ids"]["mlflow"]
    assert [m.step for m in mlflow.MlflowClient().get_metric_history(own, "loss")] == [100, 200, 300]


def test_tensorboard_hides_what_a_killed_command_sent_beyond_the_rows_of_the_run(monkeypatch, tmp_path):
    """By the library's own purge_step."""
    opened = []
    fake = types.ModuleType("tensorboardX")
    writer = types.SimpleNamespace(add_scalar=lambda *_: None, flush=lambda: None, close=lambda: None)
    fake.SummaryWriter = lambda **options: (opened.append(options["purge_step"]), writer)[1]
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    _send(tmp_path, _rows(4), names=("tensorboard",))
    _send(tmp_path, _rows(6, 3), before=_rows(3), names=("tensorboard",))
    assert opened == [None, 201]
