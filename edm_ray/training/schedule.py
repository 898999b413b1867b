"""What is due after a step. The clock of a run is images seen, so a resumed run does the same at the same moments."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from edm_ray.config.training import TrainingConfig
from edm_ray.training.signals import Signal


class Every:
    """Due when a multiple of an interval has been passed since it was last asked, and at the end of a run.

    kimg: the interval in thousands of images; None or 0 = never due.
    """

    def __init__(self, kimg: float | None, images_seen: int) -> None:
        self.interval = max(1, round(kimg * 1000)) if kimg else None
        self.asked_at = images_seen

    def due(self, images_seen: int, done: bool) -> bool:
        before, self.asked_at = self.asked_at, images_seen
        if self.interval is None:
            return False
        return done or images_seen // self.interval > before // self.interval


@dataclass(frozen=True)
class Due:
    """True where anything is due."""

    tick: bool = False
    """A row of metrics."""
    averages: bool = False
    """A snapshot of the power-function averages."""
    snapshot: bool = False
    """A model directory below RUN/snapshots, and its grid."""
    checkpoint: bool = False
    stop: bool = False

    def __bool__(self) -> bool:
        return any(astuple(self))


class Schedule:
    """Ticks, and what is due at ticks only: checkpoints and snapshots; and what signals ask for at any step."""

    def __init__(self, config: TrainingConfig, snapshot_kimg: float | None, images_seen: int) -> None:
        self.total = math.ceil(config.total_kimg * 1000 / config.batch_size) * config.batch_size
        tick = _last_tick(images_seen, config)
        self.ticks = Every(config.tick_kimg, images_seen)
        self.averages = Every(config.ema.snapshot_kimg if config.ema.sigma_rels else None, tick)
        self.snapshots = Every(snapshot_kimg, tick)
        self.checkpoints = Every(config.checkpoint_kimg, tick)
        self.signal = Signal.NONE

    def after_step(self, images_seen: int, signal: Signal) -> Due:
        """Call it once after every step. A signal asks for a checkpoint when it comes, and at each tick it lasts."""
        done = images_seen >= self.total
        tick = self.ticks.due(images_seen, done)
        stronger, self.signal = signal > self.signal, signal
        asked, stop = signal > Signal.NONE and (tick or stronger), signal is Signal.STOP and not done
        if not tick:
            return Due(checkpoint=asked, stop=stop and asked)
        return Due(
            tick=True,
            averages=self.averages.due(images_seen, done),
            snapshot=self.snapshots.due(images_seen, done),
            checkpoint=self.checkpoints.due(images_seen, done) or asked,
            stop=stop,
        )


def _last_tick(images_seen: int, config: TrainingConfig) -> int:
    """The last tick at or before this moment: a run that was told to stop resumes between two."""
    interval = max(1, round(config.tick_kimg * 1000))
    return -(-(images_seen // interval * interval) // config.batch_size) * config.batch_size
