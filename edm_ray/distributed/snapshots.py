"""Snapshots are drawn beside the training, by a thread of the driver that looks for them: never in it, never waited
for before it ends, and what goes wrong with one is a line of the output.
What has no room beside the training (`snapshot_runners.py`) is drawn when that has ended, and the output says so.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edm_ray.diffusion.samplers import Sampler
from edm_ray.distributed.snapshot_runners import Runner
from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.chunks import POOL_START
from edm_ray.generation.snapshot import FID_LABELS, GRID_IMAGES, GRID_LABELS, Job
from edm_ray.storage import uris
from edm_ray.training import snapshots
from edm_ray.training.snapshots import Record
from edm_ray.training.ticks import crossed

POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class SnapshotPlan:
    """How often, how and where snapshots are drawn."""

    kimg: float
    settings: Sampler
    reference: str | None
    reference_hash: str | None
    """Of its moments: another reference at the same place is another FID."""
    num: int
    device: str
    share: float
    """Of a GPU; of one CPU always 1."""
    after: bool

    def gpus_of_a_worker(self, training_device: str) -> float:
        """Under Ray, of each worker that trains on CUDA: a whole card, less the share of it that is kept for this."""
        shared = training_device == self.device == "cuda" and not self.after
        return round(1.0 - self.share, 4) if shared else 1.0

    @property
    def how(self) -> dict[str, Any]:
        """All that decides a drawing, but for the model. Values as text: JSON has no infinity."""
        fid = {"reference": self.reference_hash, "num": self.num, "first": POOL_START["evaluate"], "labels": FID_LABELS}
        settings = {key: repr(value) for key, value in dataclasses.asdict(self.settings).items()}
        grid = {"images": GRID_IMAGES, "labels": GRID_LABELS}
        return {"settings": settings, "grid": grid, "device": self.device, **({"fid": fid} if self.reference else {})}

    def job(self, run_uri: str, nimg: int) -> Job:
        return Job(
            nimg=nimg,
            model=snapshots.snapshot_model_uri(run_uri, nimg),
            picture=snapshots.picture_uri(run_uri, nimg),
            settings=self.settings.to_dict(),
            reference=self.reference,
            num=self.num,
            first_seed=POOL_START["evaluate"],
            device=self.device,
            share=self.share,
        )


def parse_place(text: str, training_device: str) -> tuple[str, float, bool]:
    """ "cpu", "gpu:0.25" or "after" -> (device, share of it, only when training has ended)."""
    name, _, share = text.partition(":")
    if text == "cpu":
        return "cpu", 1.0, False
    if text == "after":
        return training_device, 1.0, True
    try:
        value = round(float(share), 4) if name == "gpu" else 0.0  # Ray counts in ten-thousandths
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise InputError(
            f"--snapshot-on {text}: give cpu, gpu:SHARE with a share of up to 1 such as gpu:0.25, or after"
        )
    return "cuda", value, False


def require_reservable(share: float, workers: tuple[int, int]) -> None:
    """Raises InputError where (least, most) workers of Ray Train cannot leave that share of their cards free."""
    given = f"--snapshot-on gpu:{share:g}"
    if share >= 0.5:
        raise InputError(
            f"{given}: workers that train would be left with half a card or less, and Ray would put two of them on one "
            "card; give a share below 0.5 such as gpu:0.25, or cpu or after"
        )
    if workers[0] < workers[1]:
        raise InputError(
            f"{given} with --workers {workers[0]}:{workers[1]}: workers that leave a share of their card free are "
            "counted wrongly by Ray Train where it plans how many of them nodes with several cards hold; give "
            f"--snapshot-on cpu or after, or a fixed number such as --workers {workers[1]}"
        )


class Follower:
    """Looks for models below RUN/snapshots and has each drawn once. ``say`` takes lines, ``on_record`` new records."""

    def __init__(
        self,
        plan: SnapshotPlan,
        run_uri: str,
        runner: Runner,
        say: Callable[[str], None],
        on_record: Callable[[Record], None] = lambda record: None,
        last_nimg: int = 0,
    ) -> None:
        self.plan, self.run_uri, self.runner, self.say, self.on_record = plan, run_uri, runner, say, on_record
        self.how = snapshots.how_key(plan.how)
        self.seen: set[int] = set()
        self.waiting: dict[int, str] = {}
        self.running: tuple[int, str] | None = None
        self.failed: set[int] = set()
        self.told: set[int] = set()
        self.complaint = ""
        self.last_nimg, self.due = last_nimg, set[int]()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._work, name="snapshots", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def on_tick(self, row: Record) -> None:
        """A row of metrics: was a snapshot due there?"""
        before, self.last_nimg = self.last_nimg, row["nimg"]
        if crossed(before, row["nimg"], self.plan.kimg) or row["nimg"] >= row["total"]:
            self.due.add(row["nimg"])

    def records(self) -> list[Record]:
        """Of this way of drawing, ascending in images seen."""
        return [row for row in snapshots.read_log(self.run_uri) if row["how"] == self.how]

    def _work(self) -> None:
        while not self.stop.wait(POLL_SECONDS):
            self._guarded(training=True)

    def _guarded(self, training: bool) -> None:
        """`_pump`, whatever it raises: said once, tried again at the next look."""
        try:
            self._pump(training)
            self.complaint = ""
        except Exception as error:
            complaint = f"{type(error).__name__}: {error}"
            if complaint != self.complaint:
                self.say(f"warning: snapshots: {complaint}; training is not touched")
            self.complaint = complaint

    def _look(self) -> None:
        made = {row["key"] for row in self.records()}
        for nimg in snapshots.snapshot_moments(self.run_uri):
            if nimg in self.seen:
                continue
            try:
                weights = snapshots.snapshot_weights(self.run_uri, nimg)
            except IntegrityError as error:
                self.seen.add(nimg)
                self._failed(nimg, error)
                continue
            if weights is None:  # not whole yet
                continue
            self.seen.add(nimg)
            key = snapshots.record_key(self.plan.how, nimg, weights)
            if key not in made or not uris.exists(snapshots.picture_uri(self.run_uri, nimg)):
                self.waiting[nimg] = key

    def _pump(self, training: bool) -> None:
        """One look: take what is done, look for new ones, start the next."""
        self._take()
        self._look()
        if not self.waiting and self.running is None:
            return
        obstacle = None
        if training:
            obstacle = "as --snapshot-on after says" if self.plan.after else self.runner.obstacle()
        if obstacle is not None:
            if self.running is not None:  # the cluster has shrunk below what training and it need together
                self.runner.cancel()
                self.waiting[self.running[0]], self.running = self.running[1], None
            for nimg in sorted(self.waiting.keys() - self.told):
                self.say(f"snapshot at {nimg:,} images is deferred to the end of training: {obstacle}")
                self.told.add(nimg)
        elif self.running is None:
            nimg = min(self.waiting)
            self.running = nimg, self.waiting.pop(nimg)
            try:
                self.runner.start(self.plan.job(self.run_uri, nimg))
            except Exception as error:
                self._failed(nimg, error)

    def _take(self) -> None:
        if self.running is None:
            return
        nimg, key = self.running
        try:
            record = self.runner.result()
            if record is None:
                return
            record = {**record, "how": self.how, "key": key}
            snapshots.add_to_log(self.run_uri, record)
        except Exception as error:
            self._failed(nimg, error)
            return
        self.running = None
        self.on_record(record)

    def _failed(self, nimg: int, error: Exception) -> None:
        if self.running is not None and self.running[0] == nimg:
            self.running = None
        self.failed.add(nimg)
        lines = str(error).strip().splitlines() or [""]
        self.say(
            f"warning: snapshot at {nimg:,} images failed ({type(error).__name__}: {lines[0]}); training is not touched"
        )

    def close(self, done: bool, must_stop: Callable[[], bool] = lambda: False) -> bool:
        """End. ``done``: training has ended well, so what is left is drawn now, and waited for; else it is dropped, and
        the same command draws it. Returns whether all that was to be drawn was tried."""
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join()
        try:
            if done:
                self.seen.clear()  # a resumed run may have written other weights under a name that was seen
                if self.running is not None:
                    self.seen.add(self.running[0])
                self.seen |= self.failed
                self._guarded(training=False)
                if left := len(self.waiting) + (self.running is not None):
                    self.say(f"snapshots left to draw: {left}")
                pause = threading.Event()
                while (self.waiting or self.running is not None) and not must_stop() and not self.complaint:
                    self._guarded(training=False)
                    pause.wait(0.05 if self.running is not None else 0.0)
        finally:
            if self.running is not None:
                self.runner.cancel()
                self.waiting[self.running[0]], self.running = self.running[1], None
        if done:
            self._name_missing()
        if self.waiting:
            self.say(f"snapshots not drawn: {len(self.waiting)}; the same command draws them")
        return not self.waiting

    def _name_missing(self) -> None:
        try:
            for nimg in sorted(self.due):
                if nimg in self.failed or snapshots.snapshot_weights(self.run_uri, nimg) is not None:
                    continue
                self.say(f"warning: the model of the snapshot at {nimg:,} images was not written; see the log")
        except Exception as error:
            self.say(f"warning: snapshots: {type(error).__name__}: {error}")
