"""A sweep on Ray Tune: every evaluation the driver asks for is a trial; sampling and FID are separate remote calls.

The driver (`search/`) decides, Tune runs: `DriverSearcher` is the ask / tell bridge. A trial waits for its FID
at the dispatchers, so it needs next to no CPU and many fit beside the pools.

Nothing of Tune is kept: a sweep that was killed and is run again is a new experiment, and comes to the same decisions,
since chunks and measurements are artefacts of the store and decisions follow from them.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import ray
import ray.tune
from ray.tune.search import Searcher

from edm_ray.distributed.metrics import BEST_FID, ENDED, tell
from edm_ray.distributed.pool import Pool
from edm_ray.distributed.ray_private import keep_aws_keys_out_of_trials
from edm_ray.distributed.requests import FirstFid
from edm_ray.distributed.trial import evaluate
from edm_ray.evaluation.chunks import Generator, chunks_of
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.driver import AskTell
from edm_ray.search.trials import Evaluation, TrialResult
from edm_ray.storage import uris
from edm_ray.storage.versioned import FORMAT

TRIAL_CPUS = 0.01
LEAST_CONCURRENT, MOST_CONCURRENT = 4, 64
"""Each trial in flight is a process, which takes seconds of CPU to start."""
LOST = "its process was lost again and again; Ray's logs say how"
TRIALS = "trials.jsonl"
"""What Tune knows of the trials, one line each."""
OnTrial = Callable[[TrialResult], None]


def concurrency(workers: int) -> int:
    """Trials in flight for a pool of so many samplers: while some wait for their FID, others keep it busy."""
    return min(max(LEAST_CONCURRENT, 2 * workers), MOST_CONCURRENT)


class DriverSearcher(Searcher):
    """Ray Tune's side of a sweep's driver."""

    def __init__(self, driver: AskTell, on_trial: OnTrial, out: str = ""):
        """out: the sweep's place, by which Ray's metrics tell it from others."""
        super().__init__(metric="fid", mode="min")
        self.driver, self.on_trial, self.out = driver, on_trial, out
        self.ended, self.best = 0, math.inf
        self.waiting: list[Evaluation] = []
        self.running: dict[str, Evaluation] = {}
        self.most = LEAST_CONCURRENT

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        self.most = max_concurrent
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self.waiting:
            self.waiting = self.driver.ask()
        if not self.waiting:
            return Searcher.FINISHED if self.driver.finished and not self.running else None
        if len(self.running) >= self.most:
            return None
        evaluation = self.running[trial_id] = self.waiting.pop(0)
        return _trial_config(evaluation, self.driver.searched, self.driver.plan.chunk_size)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        evaluation = self.running.pop(trial_id)
        if error or not result or not ("estimate" in result or "failure" in result):
            told = self.driver.tell_failure(evaluation.id, LOST)
        elif "failure" in result:
            told = self.driver.tell_failure(evaluation.id, result["failure"])
        else:
            estimate = FidEstimate.from_dict(json.loads(result["estimate"]))
            told = self.driver.tell(evaluation.id, estimate, result["seconds"])
        self._tell(told)
        self.on_trial(told)

    def _tell(self, told: TrialResult) -> None:
        self.ended += 1
        tell(ENDED, self.ended, self.out)
        if told.estimate is not None:
            self.best = min(self.best, told.estimate.fid)
            tell(BEST_FID, self.best, self.out)

    def __reduce__(self) -> Any:
        """A driver is a running program and is not pickled; nobody restores Tune's state."""
        return DriverSearcher._not_kept, ()

    @staticmethod
    def _not_kept() -> None:
        return None

    def save(self, checkpoint_path: str) -> None:
        """Tune asks for it now and then; nothing is to be kept."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


def _trial_config(evaluation: Evaluation, searched: Iterable[str], chunk_size: int) -> dict[str, Any]:
    """What a person sees of the trial in the ResultGrid, and what the trial needs: plain values."""
    settings = evaluation.settings.to_dict()
    return {
        "evaluation": evaluation.id,
        "stage": evaluation.stage,
        "pool": evaluation.seeds,
        "chunks": evaluation.chunks,
        **{name: settings[name] for name in searched if name in settings},
        "settings": settings,
        "chunk_size": chunk_size,
    }


def sweep_on_ray(
    sampling: Pool, generator: Generator, driver: AskTell, out: str, on_trial: OnTrial, most: int
) -> ray.tune.ResultGrid:
    """Run the sweep to its end. sampling: opened together with the pool that measures, in this order. At most ``most``
    trials are in flight at once (`concurrency`)."""
    keep_aws_keys_out_of_trials()
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    # Looked at in any case; so workers start while Tune does.
    sampling.ensure(*chunks_of(generator, driver.baseline, "search", 1, driver.plan.chunk_size))
    with tempfile.TemporaryDirectory() as folder:
        request = ray.put(FirstFid(generator=generator))
        trainable = ray.tune.with_parameters(evaluate, dispatchers=sampling.dispatchers, request=[request])
        searcher = DriverSearcher(driver, on_trial, out)
        grid = _tuner(ray.tune.with_resources(trainable, {"cpu": TRIAL_CPUS}), searcher, folder, most).fit()
    lines = [json.dumps({"format": FORMAT, **result.metrics}, default=str) for result in grid if result.metrics]
    uris.write_bytes(uris.join(out, TRIALS), "\n".join([*lines, ""]).encode())
    return grid


def _tuner(trainable: Any, searcher: DriverSearcher, folder: str, most: int) -> ray.tune.Tuner:
    """folder: a private one, for what Tune writes; some of it is pickled, and nobody reads it."""
    return ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=most,
            reuse_actors=True,
            metric="fid",
            mode="min",
            trial_name_creator=lambda trial: f"eval_{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"eval_{trial.trial_id}",
        ),
        run_config=ray.tune.RunConfig(
            name="sweep",
            storage_path=folder,
            verbose=0,
            # A trial whose node is lost starts again, on chunks that are kept.
            failure_config=ray.tune.FailureConfig(max_failures=5),
        ),
    )
