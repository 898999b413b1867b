"""Simulated worlds: FIDs with noise that all samplers share, and a little of their own. No images, no Ray."""

from __future__ import annotations

import math

import numpy as np

from edm_ray.config.text import parse_yaml
from edm_ray.diffusion.samplers import Sampler
from edm_ray.evaluation.fid import FidEstimate, standard_error
from edm_ray.search.driver import Driver
from edm_ray.search.plan import SweepPlan, sweep_plan
from edm_ray.search.space import Space, space_of

SPACE = """
name: test
search:
  churn_fraction: {low: 0, high: 1}
  s_tmin: {low: 0.01, high: 0.5, scale: log}
  s_tmax: {low: 1, high: 80, scale: log}
  s_noise: {low: 1.0, high: 1.01}
starts:
  paper: {s_churn: 40, s_tmin: 0.05, s_tmax: 50, s_noise: 1.003}
"""
CHUNK_SIZE, CONFIRM_CHUNKS = 100, 10
FLAT = {
    "chunk_size": CHUNK_SIZE,
    "initial_chunks": 2,
    "max_chunks": 8,
    "num_line": 4,
    "num_global": 8,
    "num_model": 6,
    "confirm_chunks": CONFIRM_CHUNKS,
}


def plan_of(**changes) -> SweepPlan:
    """A small plan, in the flat form; by default of a race."""
    return sweep_plan(**{**FLAT, **changes})


def driver_of(space: Space | str, seed: int = 0, **changes) -> Driver:
    """A sweep over a space, or over the text of one, by a small plan."""
    return Driver(space_from(space) if isinstance(space, str) else space, plan_of(**changes), seed)


def space_from(text: str) -> Space:
    return space_of(parse_yaml(text, "space.yaml"), "space.yaml")


def truth(settings: Sampler) -> float:
    """Best near S_churn = 4; a solver without churn is like none."""
    s_churn, s_noise = getattr(settings, "s_churn", 0.0), getattr(settings, "s_noise", 1.0)
    return 5.0 + 0.1 * (s_churn - 4.0) ** 2 + 20 * abs(s_noise - 1.0)


def simulate(evaluation, world=0, fid=truth, chunk_size=100, noise=(10.0, 0.5)):
    """Ten groups of images, with noise shared by all settings (the seeds) and a little of their own."""
    n = evaluation.chunks * chunk_size
    shared = np.random.default_rng([world, 1, len(evaluation.seeds), n]).normal(size=10)
    own = np.random.default_rng([world, 2, n, *evaluation.id.encode()]).normal(size=10)
    groups = fid(evaluation.settings) + (noise[0] * shared + noise[1] * own) / math.sqrt(n / 10)
    mean = groups.mean()
    influence = (groups - mean) / 10
    return FidEstimate(
        fid=mean + 100 / n,
        debiased=mean,
        se=standard_error(influence),
        n=n,
        influence=tuple(influence),
        reference="r",
        extractor="e",
    )


def run(driver, order=lambda items: items, world=0, fail=lambda e: False, **how):
    """Play a sweep to its end; all that it asked."""
    asked = []
    while not driver.finished:
        batch = driver.ask()
        assert batch, "the strategy waits for nothing"
        asked += batch
        for evaluation in order(list(batch)):
            if fail(evaluation):
                driver.tell_failure(evaluation.id, "out of memory")
            else:
                driver.tell(evaluation.id, simulate(evaluation, world, **how), seconds=1.0)
    return asked
