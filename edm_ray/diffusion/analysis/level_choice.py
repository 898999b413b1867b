"""Noise levels that make a multistep solver's own local errors small, by dynamic programming on trajectories.

For a solver and a number of steps: which of K noise levels should be visited? The error of a step is that of the
solver itself, with the levels before it as its history, from a state on the trajectory (`trajectories`). Weights say
what an error at each level does to the image (`gaussian_weights`). The best levels by this are proposals: FID decides,
and often prefers others.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from edm_ray.diffusion.analysis.trajectories import Trajectories
from edm_ray.diffusion.denoiser import AtLevel, Plain
from edm_ray.diffusion.samplers import Evaluation, Sampler
from edm_ray.diffusion.samplers.multistep import Multistep

CARRIED = 0.5
"""Power of `gaussian_weights`. 1 would be the Gaussian's own; of 0.5 and 1 the better on two of the landscapes
(`research/leaderboard`)."""
Aim = Literal["sum", "largest"]
"""Of the squared errors of the steps: their sum, or the largest of them (equal errors)."""
Visited = tuple[int, ...]


def can_choose(sampler: Sampler) -> bool:
    """Whether a sampler's steps are linear in what it has seen, without noise."""
    return isinstance(sampler, Multistep) and not sampler.is_sde and sampler.guidance == 1


def best_levels(
    trajectories: Trajectories, sampler: Sampler, count: int, weights: npt.NDArray[np.float64], aim: Aim = "sum"
) -> tuple[list[float], float]:
    """``count`` of the trajectories' levels, beginning with the highest, and the error that they are to make.

    weights: [K + 1], of a squared error at each level, and of one in the image.
    A path to each level is kept for each number of steps, the one of least error, and longer paths continue it: exact
    for solvers that look one level back, and near it for those that look further. The step to 0 is D itself.
    """
    assert can_choose(sampler) and 2 <= count <= len(trajectories.levels)
    steps = _Steps(trajectories, sampler, weights)
    last = len(trajectories.levels) - 1
    paths: dict[int, tuple[float, Visited]] = {0: (0.0, (0,))}
    for left in range(count - 2, -1, -1):
        longer: dict[int, tuple[float, Visited]] = {}
        for here, (error, path) in paths.items():
            for there in range(here + 1, last - left + 1):
                made = _joined(error, steps.error(path, there), aim)
                if there not in longer or made < longer[there][0]:
                    longer[there] = (made, (*path, there))
        paths = longer
    error, path = min((_joined(error, steps.last(path), aim), path) for error, path in paths.values())
    return [trajectories.levels[index] for index in path], error


def _joined(a: float, b: float, aim: Aim) -> float:
    return a + b if aim == "sum" else max(a, b)


class _Steps:
    """Weighted squared errors of single steps."""

    def __init__(self, trajectories: Trajectories, sampler: Sampler, weights: npt.NDArray[np.float64]) -> None:
        self.levels, self.products, self.sampler = trajectories.levels, trajectories.products, sampler
        self.count = len(self.levels)
        self.of_level = weights
        self._known: dict[tuple[Visited, int], float] = {}

    def error(self, path: Visited, there: int) -> float:
        """Of the step from the end of a path to the level ``there``."""
        order = self.sampler.full_order if isinstance(self.sampler, Multistep) else 1
        seen = path[-order:]
        if (seen, there) not in self._known:
            weights, rows = self._weights(seen, there)
            squared = float(weights @ self.products[np.ix_(rows, rows)] @ weights)
            self._known[seen, there] = max(squared, 0.0) * float(self.of_level[there])
        return self._known[seen, there]

    def last(self, path: Visited) -> float:
        """Of D at the last level against the end of the trajectory."""
        d, end = self.count + path[-1], self.count - 1
        squared = float(self.products[d, d] + self.products[end, end] - 2 * self.products[d, end])
        return max(squared, 0.0) * float(self.of_level[-1])

    def _weights(self, seen: Visited, there: int) -> tuple[np.ndarray, list[int]]:
        """Of x and D at the levels seen and at the end of the step, in the difference from x there; and their rows.

        The solver itself tells: it takes the step in a space where each of them is a unit vector.
        """
        places = [*seen[::-1], there]
        rows = [*places, *(self.count + place for place in places)]
        unit = torch.eye(len(rows), dtype=torch.float64)[:, None, None, :].split(1)
        states, denoised = unit[: len(places)], unit[len(places) :]
        at = {self.levels[place]: value for place, value in zip(places, denoised, strict=True)}
        D = AtLevel(Plain(lambda x, sigma, labels: at[float(sigma[0])]))
        start, *before = (Evaluation(self.levels[place], states[i], denoised[i]) for i, place in enumerate(places[:-1]))
        end = self.levels[there]
        step = self.sampler.mean_step(D, start.x, start.level, end, before) - states[len(places) - 1]
        weights: np.ndarray = step.flatten().numpy()
        return weights, rows


def gaussian_weights(trajectories: Trajectories) -> npt.NDArray[np.float64]:
    """[K + 1]: an error at noise level sigma is carried to the image as a Gaussian of the data's variance carries it,
    sigma_d^2 / (sigma_d^2 + sigma^2) of its square, to the power ``CARRIED``; 1 in the image."""
    deviation = data_deviation(trajectories)
    return np.array([*((1 + (level / deviation) ** 2) ** -CARRIED for level in trajectories.levels), 1.0])


def data_deviation(trajectories: Trajectories) -> float:
    """Root mean square of the images at the trajectories' end: sigma_data where pixels are centred."""
    end = len(trajectories.levels) - 1
    return math.sqrt(float(trajectories.products[end, end]))
