"""A sweep on Ray Tune: every evaluation the controller asks for is a trial; sampling and FID are separate tasks.

The strategy (`search/`) decides, Tune runs: `StrategySearcher` is the ask / tell bridge. A trial waits for its
chunks on the shared pool, then for its FID task, so it needs next to no CPU and many fit beside the pool. All of it
is keyed and chunks are kept, so a sweep that was killed and is run again makes the same decisions without sampling
anything twice.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.tune
from ray.tune.execution import class_cache
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.tune.search import Searcher

from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.orchestration.chunks import chunks_of
from edm_ray.orchestration.evaluate import Bench
from edm_ray.orchestration.pool import FID_CPUS, OUTSIDE, fid_task
from edm_ray.orchestration.session import session
from edm_ray.search.strategy import Evaluation, Strategy
from edm_ray.storage import uris

TRIAL_CPUS = 0.01
# Tune copies AWS keys from this environment into the trials' runtime environment, which Ray writes to its logs. Nodes
# have credentials of their own.
class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if "AWS_" not in name}


class HoursBudget:
    """Turns hours of all workers into network evaluations, at the speed of the first batch that generated images.

    The speed is written down, so that a sweep that is run again stops at the same place.
    """

    def __init__(self, strategy: Strategy, hours: float, workers: int, out: str) -> None:
        self.strategy, self.hours, self.workers, self.path = strategy, hours, workers, uris.join(out, "speed.json")
        self.generated, self.started, self.known = 0, time.monotonic(), False
        if uris.exists(self.path):
            self._limit(json.loads(uris.read_bytes(self.path))["evaluations_per_worker_hour"])

    def add(self, evaluation: Evaluation, generated: int) -> None:
        self.generated += generated * evaluation.settings.nfe

    def batch_done(self) -> None:
        """To be called before the last answer of a batch is told."""
        if self.known or not self.generated:
            return
        speed = self.generated / (self.workers * (time.monotonic() - self.started) / 3600)
        uris.write_bytes(self.path, json.dumps({"evaluations_per_worker_hour": speed}).encode())
        self._limit(speed)

    def _limit(self, speed: float) -> None:
        self.known = True
        self.strategy.limit_evaluations(int(self.hours * speed))


class StrategySearcher(Searcher):
    """Ray Tune's side of a strategy. An InputError of the strategy ends the sweep in good order and is kept."""

    def __init__(
        self,
        strategy: Strategy,
        on_trial: Callable[[Evaluation, dict[str, Any] | None], None],
        hours: HoursBudget | None = None,
    ):
        super().__init__(metric="fid", mode="min")
        self.strategy, self.on_trial, self.hours = strategy, on_trial, hours
        self.waiting: list[Evaluation] = []
        self.running: dict[str, Evaluation] = {}
        self.error: InputError | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.error is None and not self.waiting:
            self.waiting = list(self.strategy.ask())
        if self.error is not None or not self.waiting:
            over = self.error is not None or self.strategy.finished
            return Searcher.FINISHED if over and not self.running else None
        evaluation = self.waiting.pop(0)
        self.running[trial_id] = evaluation
        return _trial_config(evaluation)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        evaluation = self.running.pop(trial_id)
        try:
            self._tell(evaluation, None if error or not result or "estimate" not in result else result)
        except InputError as refusal:
            self.error, self.waiting = refusal, []

    def _tell(self, evaluation: Evaluation, result: dict[str, Any] | None) -> None:
        self.on_trial(evaluation, result)
        if self.hours is not None:
            self.hours.add(evaluation, result["generated"] if result else 0)
            if not self.running and not self.waiting:
                self.hours.batch_done()
        if result is None:
            self.strategy.tell_failure(evaluation.id, "the trial failed; its log is in the sweep's folder")
        else:
            self.strategy.tell(evaluation.id, FidEstimate.from_dict(json.loads(result["estimate"])), result["seconds"])

    def __getstate__(self) -> dict[str, Any]:
        """What Tune keeps of it in its files: nothing, for the reason below (and a strategy is a running program)."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the strategy's state follows from the chunks."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, for the same reason."""


def _trial_config(evaluation: Evaluation) -> dict[str, Any]:
    """What a person sees of the trial in the ResultGrid, and what the trial needs."""
    settings = {key: value for key, value in dataclasses.asdict(evaluation.settings).items() if key.startswith("s_")}
    return {
        "evaluation": evaluation.id,
        "stage": evaluation.stage,
        "pool": evaluation.seeds,
        "chunks": evaluation.chunks,
        **settings,
        "settings": evaluation.settings,
    }


def _trial(config: dict[str, Any], bench: Bench, queue: Any, generator: Any, chunk_size: int) -> dict[str, Any]:
    """One evaluation: its chunks on the pool, then its FID."""
    started = time.monotonic()
    chunks = chunks_of(generator, config["settings"], config["pool"], config["chunks"], chunk_size)
    generated = ray.get([queue.ensure.remote(chunk) for chunk in chunks])
    task = fid_task.options(scheduling_strategy=OUTSIDE, num_cpus=FID_CPUS)
    estimate: FidEstimate = ray.get(task.remote(bench.store, chunks, bench.reference))
    return {
        "fid": estimate.fid,
        "debiased": estimate.debiased,
        "se": estimate.se,
        "n": estimate.n,
        "generated": sum(chunk.size for chunk, new in zip(chunks, generated, strict=True) if new),
        "seconds": time.monotonic() - started,
        "estimate": json.dumps(estimate.to_dict()),
    }


def sweep_on_ray(
    bench: Bench,
    strategy: Strategy,
    chunk_size: int,
    out: str,
    on_trial: Callable[[Evaluation, dict[str, Any] | None], None],
    *,
    concurrent: int,
    budget_hours: float | None = None,
) -> ray.tune.ResultGrid:
    """Run the sweep to its end. ``concurrent`` trials are in flight at once (they share the pool).

    Raises InputError when ``budget_hours`` (of all workers together) turns out too little to confirm anything.
    """
    with session():
        bench.require()
        hours = None if budget_hours is None else HoursBudget(strategy, budget_hours, bench.workers, out)
        searcher = StrategySearcher(strategy, on_trial, hours)
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        pool = bench.start()
        trainable = ray.tune.with_parameters(
            _trial, bench=bench, queue=pool.queue, generator=bench.generator(), chunk_size=chunk_size
        )
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, {"cpu": TRIAL_CPUS}),
            tune_config=ray.tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                metric="fid",
                mode="min",
                trial_name_creator=lambda trial: f"eval_{trial.trial_id}",
                trial_dirname_creator=lambda trial: f"eval_{trial.trial_id}",
            ),
            run_config=ray.tune.RunConfig(
                name=f"tune-{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=uris.join(out, "log"),
                verbose=0,
                # A trial whose node is lost starts again, on chunks that are kept.
                failure_config=ray.tune.FailureConfig(max_failures=5),
                callbacks=[JsonLoggerCallback(), CSVLoggerCallback()],
            ),
        )
        grid = tuner.fit()
        pool.stop()
        if searcher.error is not None:
            raise searcher.error
        return grid
