"""What a run keeps: checkpoints, snapshots of the averages, model directories of snapshots. A thread writes them: a
step waits for a copy of the tensors, not for storage.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from edm_ray.config.codec import Codec
from edm_ray.models import save_model
from edm_ray.models.checkpoints import Checkpoint, CheckpointStore
from edm_ray.storage.outlive import outlived
from edm_ray.training.device import Place
from edm_ray.training.metrics import MetricsLog
from edm_ray.training.posthoc import save_snapshot
from edm_ray.training.run import snapshot_model_uri
from edm_ray.training.schedule import Due
from edm_ray.training.state import Tensors, TrainingState

logger = logging.getLogger(__name__)
TRIES, FIRST_WAIT_S = 4, 0.5
PENDING = 2

Write = Callable[[], None]


def agreed_checkpoint(store: CheckpointStore, place: Place) -> Checkpoint | None:
    """Rank 0 looks which checkpoint is newest and whole; all load that one."""
    checkpoint = store.latest() if place.rank == 0 else None
    if place.world_size == 1:
        return checkpoint
    # A number, not `broadcast_object_list`, which unpickles what comes over the network.
    choice = torch.tensor(checkpoint.images_seen if checkpoint else -1, device=place.device)
    dist.broadcast(choice, src=0)
    return checkpoint if place.rank == 0 or choice < 0 else store.load(int(choice))


class Saver:
    """Copies what is due of a run's state to the host now, and has it written in the background."""

    def __init__(
        self,
        run_uri: str,
        store: CheckpointStore,
        about: Mapping[str, Any],
        codec: Codec,
        log: MetricsLog | None = None,
    ) -> None:
        """log: its rows are written before the checkpoint that follows them."""
        self.run_uri, self.store, self.about, self.codec, self.log = run_uri, store, about, codec, log
        self.writer = BackgroundWriter()

    def save(self, due: Due, state: TrainingState, tallies: list[torch.Tensor]) -> None:
        """tallies: `Tally.sums` of every rank. Waits where storage is two calls behind; raises what an earlier write
        raised."""
        copies: list[Callable[[], Write]] = []
        # Snapshots first: a run resumes from a checkpoint, so what lies before it must be there.
        if due.averages:
            copies.append(functools.partial(self._averages, state))
        if due.snapshot:
            copies.append(functools.partial(self._snapshot, state))
        if due.checkpoint:
            copies.append(functools.partial(self._checkpoint, state, tallies))
        if copies:
            self.writer.submit(*copies)

    def _checkpoint(self, state: TrainingState, tallies: list[torch.Tensor]) -> Write:
        images_seen = state.images_seen
        tensors = {stem: _copy(part) for stem, part in state.tensors().items()}
        tensors["tally"] = {"sums": torch.stack(tallies)}
        facts = {"images_seen": images_seen, "seed": state.config.seed}

        def write() -> None:
            if self.log is not None:
                self.log.flush()
            self.store.save(images_seen, tensors, facts)

        return write

    def _averages(self, state: TrainingState) -> Write:
        images_seen = state.images_seen
        powers = {width: _copy(average.state_dict()) for width, average in state.powers.items()}
        dtype = getattr(torch, state.config.ema.snapshot_dtype)
        return lambda: save_snapshot(self.run_uri, images_seen, powers, dtype, self.store.run)

    def _snapshot(self, state: TrainingState) -> Write:
        """The average as a model directory; what is returned does not raise."""
        uri, average = snapshot_model_uri(self.run_uri, state.images_seen), _copy(state.average.state_dict())
        about = {**self.about, "images_seen": state.images_seen}
        write = functools.partial(save_model, uri, state.config.denoiser, average, about, self.codec)
        return lambda: _persist_or_warn(write, uri)

    def close(self) -> None:
        """When all is written. Raises what a write raised."""
        self.writer.close()


def _copy(tensors: Tensors) -> Tensors:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


class BackgroundWriter:
    """One call's writes are under way and one more's may wait, so that a slow upload does not hold up the next
    checkpoint; a third call waits. That is the bound: memory holds two copies, and where storage is slower than
    checkpoints are asked for, training goes at the pace of storage.

    An error surfaces at the next call, so none is lost, and nothing is written after it: a checkpoint stands for all
    that lies before it.
    """

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: deque[Future[None]] = deque()
        self.failed = False
        self.took_s = self.cpu_s = 0.0
        """Of the last call whose writes are done: by the clock, and of the thread's CPU."""

    def submit(self, *copies: Callable[[], Write]) -> None:
        """Call each of ``copies`` now, and in the background, in order, what they return.

        Waits for room first, so that no third copy is made. What fails is tried again, with growing waits.
        """
        while len(self.pending) == PENDING or (self.pending and self.pending[0].done()):
            self.pending.popleft().result()
        writes = [copy() for copy in copies]
        self.pending.append(self.pool.submit(self._persist_all, writes))

    def _persist_all(self, writes: list[Write]) -> None:
        if self.failed:
            return
        began, cpu = time.monotonic(), time.thread_time()
        try:
            for write in writes:
                _persist(write)
        except BaseException:
            self.failed = True
            raise
        self.took_s, self.cpu_s = time.monotonic() - began, time.thread_time() - cpu

    def close(self) -> None:
        """When all is written. Raises what a write raised."""
        try:
            while self.pending:
                self.pending.popleft().result()
        finally:
            self.pool.shutdown()


def _persist(write: Write) -> None:
    outlived(write, "a checkpoint", TRIES, FIRST_WAIT_S)


def _persist_or_warn(write: Write, what: str) -> None:
    """A write that training can do without: what fails, after the same tries, is named in the log."""
    try:
        _persist(write)
    except Exception as error:
        logger.warning("%s: could not be written (%s: %s); training continues", what, type(error).__name__, error)
