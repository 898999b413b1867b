"""How long a process may be without a sign of life, and work without an end, before it is named and replaced.

A process that was stopped, whose node hangs or whose machine swaps is still there: Ray takes it for busy and waits.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from dataclasses import dataclass

from edm_ray.errors import InputError
from edm_ray.storage.s3 import outlive_s

SILENT = "EDM_RAY_SILENT_S"
FACTOR = "EDM_RAY_LATE_FACTOR"
RESTART = "EDM_RAY_RESTART_S"
LEARNT = 50
"""A bound follows the slowest of so many."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What is waited for, in seconds. The environment variables are read by the command, and hold in all processes."""

    silent_s: float = 45.0
    """EDM_RAY_SILENT_S: a process that answers nothing for so long is named. One of a pool is replaced at once; ranks
    of a training after as long again."""
    factor: float = 10.0
    """EDM_RAY_LATE_FACTOR: work is late that takes so many times what the slowest of the last 50 took."""
    restart_s: float = 720.0
    """EDM_RAY_RESTART_S: a training whose ranks answer but make no step is started again after so long: longer than
    storage that is away is waited for."""
    first_s: float = 1800.0
    """Work of which none was done before: nothing is learnt yet."""

    @property
    def least_s(self) -> float:
        """Nothing is late before that: a process that was stopped is found to be silent first."""
        return 1.5 * self.silent_s

    @property
    def collective_s(self) -> float:
        """Time-out of torch's collectives: the watch acts first, and where nobody watches, nothing waits for ever."""
        return max(self.first_s, self.restart_s) + 2 * self.silent_s


def patience_here() -> Patience:
    """As the environment has it. Raises InputError."""
    default = Patience()
    return Patience(
        silent_s=_number(SILENT, default.silent_s, 1.0),
        factor=_number(FACTOR, default.factor, 1.5),
        restart_s=_number(RESTART, max(default.restart_s, outlive_s() + 120), 1.0),
    )


def _number(name: str, default: float, least: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise InputError(f"{name}={text} is not allowed: a number of {least:g} or more")
    return value


class TimeBound:
    """How long a piece of work may take, learnt from those that were done: ``factor`` times the slowest for its size,
    and never less than ``least_s``."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.rates: deque[float] = deque(maxlen=LEARNT)
        """Seconds for each unit of work."""

    def learn(self, seconds: float, work: float = 1.0) -> None:
        self.rates.append(seconds / work)

    def of(self, work: float = 1.0, first: bool = False) -> float:
        """first: of a process, which has libraries to load and kernels to compile."""
        patience = self.patience
        if not self.rates:
            return patience.first_s
        bound = max(patience.least_s, patience.factor * max(self.rates) * work)
        return bound + patience.first_s / 6 if first else bound

    def usual(self, work: float = 1.0) -> str:
        """For people: what the slowest took."""
        return f"the slowest of the last {len(self.rates)} took {max(self.rates) * work:.1f} s" if self.rates else ""


def since(seconds: float) -> str:
    """A moment so long ago, for people."""
    return f"since {time.strftime('%H:%M:%S', time.localtime(time.time() - seconds))} ({seconds:.0f} s)"
