"""A sweep on Ray Tune: every evaluation the controller asks for is a trial; sampling and FID are separate tasks.

The controller (`search/`) decides, Tune runs: `ControllerSearcher` is the ask / tell bridge. A trial waits for its
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
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.tune.search import Searcher

from edm_ray.evaluation.fid import FidEstimate
from edm_ray.orchestration.chunks import chunks_of
from edm_ray.orchestration.evaluate import Bench
from edm_ray.orchestration.pool import FID_CPUS, OUTSIDE, fid_task, start_pool
from edm_ray.orchestration.session import session
from edm_ray.search.controller import Evaluation, SweepController
from edm_ray.storage import uris

TRIAL_CPUS = 0.01


class ControllerSearcher(Searcher):
    """Ray Tune's side of the controller."""

    def __init__(self, controller: SweepController, on_trial: Callable[[Evaluation, dict[str, Any] | None], None]):
        super().__init__(metric="fid", mode="min")
        self.controller, self.on_trial = controller, on_trial
        self.waiting: list[Evaluation] = []
        self.running: dict[str, Evaluation] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self.waiting:
            self.waiting = list(self.controller.ask())
        if not self.waiting:
            return Searcher.FINISHED if self.controller.finished and not self.running else None
        evaluation = self.waiting.pop(0)
        self.running[trial_id] = evaluation
        return _trial_config(evaluation)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        evaluation = self.running.pop(trial_id)
        if error or not result or "estimate" not in result:
            self.controller.tell_failure(evaluation.id, "the trial failed; its log is in the sweep's folder")
            self.on_trial(evaluation, None)
            return
        self.controller.tell(evaluation.id, FidEstimate.from_dict(json.loads(result["estimate"])), result["seconds"])
        self.on_trial(evaluation, result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the controller's state follows from the chunks."""

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
    controller: SweepController,
    chunk_size: int,
    out: str,
    on_trial: Callable[[Evaluation, dict[str, Any] | None], None],
    *,
    concurrent: int,
) -> ray.tune.ResultGrid:
    """Run the sweep to its end. ``concurrent`` trials are in flight at once (they share the pool)."""
    with session():
        bench.require()
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        queue = start_pool(bench.model, bench.extractor, bench.store, bench.workers, bench.device)
        trainable = ray.tune.with_parameters(
            _trial, bench=bench, queue=queue, generator=bench.generator(), chunk_size=chunk_size
        )
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, {"cpu": TRIAL_CPUS}),
            tune_config=ray.tune.TuneConfig(
                search_alg=ControllerSearcher(controller, on_trial),
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
        ray.kill(queue)
        return grid
