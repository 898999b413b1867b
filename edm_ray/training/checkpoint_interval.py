"""How often to make a checkpoint: what one costs against what a failure loses.

Failures come at random, ``mtbf_s`` seconds apart on average (exponentially distributed). A checkpoint stops the
training for ``cost_s``; a failure loses what was done since the last one.

- J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974) 530.
- J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation Computer
  Systems 22 (2006) 303, equations 20 and 37.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from edm_ray.training.signals import Signal

NODE_HOURS = 33.0
"""Hours between two failures of one node that are assumed: spot machines at their worse end (`scaling_costs`, lost)."""
ASSUMED_COST_S = 1.0
"""Of a checkpoint, as long as none was made."""


def best_interval(cost_s: float, mtbf_s: float) -> float:
    """Seconds of training between two checkpoints for which the least time is lost (Daly's eq. 37).

    Its first term is Young's sqrt(2 cost mtbf); the others matter where a checkpoint takes more than about a hundredth
    of the time between failures.
    """
    assert cost_s > 0 and mtbf_s > 0
    if cost_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = cost_s / (2 * mtbf_s)
    return math.sqrt(2 * cost_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


def lost_share(interval_s: float, cost_s: float, mtbf_s: float, restart_s: float = 0.0) -> float:
    """Part of the time that goes to checkpoints, to work that is done twice, and to restarts (0 to 1): exact for
    failures that are exponentially distributed and may also hit a restart or a checkpoint (Daly's eq. 20)."""
    exponent = min((interval_s + cost_s + restart_s) / mtbf_s, 600.0)
    spent = mtbf_s * (math.exp(exponent) - math.exp(min(restart_s / mtbf_s, exponent)))
    return 1 - interval_s / spent


class Pace:
    """In rank 0: asks for a checkpoint when the time since the last makes it worth its cost, as measured in this run.

    It is made beside those of ``checkpoint_kimg`` and changes no number. mtbf_s: 0 = never asks.
    """

    def __init__(self, mtbf_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.mtbf_s, self.clock = mtbf_s, clock
        self.cost_s, self.least_s = ASSUMED_COST_S, 0.0
        self.last = clock()

    @property
    def interval_s(self) -> float:
        """Storage is left as much time again as a checkpoint's files took."""
        return max(best_interval(self.cost_s, self.mtbf_s), self.least_s) if self.mtbf_s else math.inf

    def saved(self, cost_s: float, writing_s: float) -> None:
        """A checkpoint was made just now. cost_s: for how long training was held up for one; writing_s: how long the
        files of the one before took."""
        self.cost_s, self.least_s = max(cost_s, 1e-3), 2 * writing_s
        self.last = self.clock()

    def ask(self) -> Signal:
        return Signal.SAVE if self.clock() - self.last >= self.interval_s else Signal.NONE
