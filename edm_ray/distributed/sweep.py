"""A sweep on Ray Tune: every evaluation the strategy asks for is a trial; sampling and FID are separate remote calls.

The strategy (`search/`) decides, Tune runs: `StrategySearcher` is the ask / tell bridge. A trial waits for its
chunks on the shared pool, then for its FID on a judge, so it needs next to no CPU and many fit beside the pool.

A sweep that was killed and is run again goes on by `Tuner.restore`: what was answered is told to the strategy, which is
then where it was; what was not is asked for again, on chunks that are kept. Where Tune's own state is missing or
damaged a new experiment comes to the same decisions, since chunks are keyed and FIDs follow from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.tune.search import Searcher

from edm_ray import __version__
from edm_ray.distributed.evaluate import Bench
from edm_ray.distributed.fid_worker import start_judges
from edm_ray.distributed.ray_private import keep_aws_keys_out_of_trials
from edm_ray.distributed.session import session
from edm_ray.distributed.time_budget import limit_hours
from edm_ray.distributed.trial import evaluate
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.driver import Driver
from edm_ray.search.trials import Evaluation, TrialResult
from edm_ray.storage import uris
from edm_ray.storage.commit import sha256

TRIAL_CPUS = 0.01
LEAST_CONCURRENT, MOST_CONCURRENT = 8, 64
LOST = "its process was lost again and again; Ray's logs say how"
KEPT = ("failure", "estimate", "seconds", "generated")
"""Of a trial's result."""
OnTrial = Callable[[TrialResult], None]


def concurrency(workers: int) -> int:
    """Trials in flight for a pool of so many samplers: while some wait for their FID, others keep it busy."""
    return min(max(LEAST_CONCURRENT, 2 * workers), MOST_CONCURRENT)


class StrategySearcher(Searcher):
    """Ray Tune's side of a strategy."""

    current: StrategySearcher | None = None
    """The one of the sweep that this process runs: what Tune unpickles as the searcher of a restored experiment."""

    def __init__(self, strategy: Driver, on_trial: OnTrial, judges: int = 1):
        super().__init__(metric="fid", mode="min")
        self.strategy, self.on_trial, self.judges = strategy, on_trial, judges
        self.waiting: list[Evaluation] = []
        self.running: dict[str, Evaluation] = {}
        self.told: dict[str, dict[str, Any]] = {}
        """Evaluation id -> what its trial returned."""
        self.most = LEAST_CONCURRENT
        self.asked = 0

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Kept here: Tune's own limiter would bring back that of the run that was killed."""
        self.most = max_concurrent
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self.waiting:
            self.waiting = self.strategy.ask()
        if not self.waiting:
            return Searcher.FINISHED if self.strategy.finished and not self.running else None
        if len(self.running) >= self.most:
            return None
        evaluation = self.running[trial_id] = self.waiting.pop(0)
        self.asked += 1
        return _trial_config(evaluation, self.strategy.plan.chunk_size, self.asked % self.judges)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        evaluation = self.running.pop(trial_id, None)
        if evaluation is None:  # of a restored experiment, in flight when it was killed: it was asked for again
            return
        known = not error and result and ("estimate" in result or "failure" in result)
        told = {key: result[key] for key in KEPT if key in result} if known and result else {"failure": LOST}
        answer = _answer(evaluation, told)
        self.on_trial(answer)
        self._tell(answer, told)

    def _tell(self, answer: TrialResult, told: dict[str, Any]) -> None:
        self.told[answer.evaluation.id] = told
        if answer.estimate is None:
            self.strategy.tell_failure(answer.evaluation.id, answer.failure)
        else:
            self.strategy.tell(answer.evaluation.id, answer.estimate, answer.seconds)

    def __reduce__(self) -> Any:
        """A strategy is a running program and is not pickled: who restores the experiment brings the searcher."""
        return _current, ()

    def save(self, checkpoint_path: str) -> None:
        """All that a strategy's state follows from."""
        Path(checkpoint_path).write_text(json.dumps(self.told))

    def restore(self, checkpoint_path: str) -> None:
        """Tell the strategy what it was told; what it asks for beyond that goes to new trials."""
        answers = json.loads(Path(checkpoint_path).read_text())
        while asked := self.strategy.ask():
            known = [evaluation for evaluation in asked if evaluation.id in answers]
            self.waiting += [evaluation for evaluation in asked if evaluation.id not in answers]
            for evaluation in known:
                self._tell(_answer(evaluation, answers[evaluation.id]), answers[evaluation.id])


def _current() -> StrategySearcher:
    if StrategySearcher.current is None:
        raise InputError("this experiment of Ray Tune is a sweep of edm-ray: go on with the command that began it")
    return StrategySearcher.current


def _answer(evaluation: Evaluation, told: dict[str, Any]) -> TrialResult:
    if "failure" in told:
        return TrialResult(evaluation=evaluation, failure=told["failure"])
    estimate = FidEstimate.from_dict(json.loads(told["estimate"]))
    return TrialResult(evaluation=evaluation, estimate=estimate, seconds=told["seconds"])


def _trial_config(evaluation: Evaluation, chunk_size: int, judge: int) -> dict[str, Any]:
    """What a person sees of the trial in the ResultGrid, and what the trial needs: plain values."""
    settings = dataclasses.asdict(evaluation.settings)
    return {
        "evaluation": evaluation.id,
        "stage": evaluation.stage,
        "pool": evaluation.seeds,
        "chunks": evaluation.chunks,
        **{key: value for key, value in settings.items() if key.startswith("s_")},
        "settings": settings,
        "chunk_size": chunk_size,
        "judge": judge,
    }


def _experiment(bench: Bench, strategy: Driver, hours: float | None) -> str:
    """The experiment's name, from all that its answers and decisions follow from: another sweep is another one."""
    reference = bench.reference.moments.hash
    parts = (
        __version__,
        strategy.search.space,
        strategy.plan,
        strategy.search.seed,
        hours,
        bench.generator(),
        reference,
    )
    return f"tune-{sha256(repr(parts).encode())[:12]}"


def can_restore(folder: str) -> bool:
    """Whether a killed sweep left a whole state there. (Tune writes it now and then, file by file.)"""
    if not ray.tune.Tuner.can_restore(folder):
        return False
    for begin in ("experiment_state-", "searcher-state-", "search_gen_state-"):
        names = sorted(name for name in uris.list_names(folder) if name.startswith(begin))
        if not names:
            return False
        if begin != "search_gen_state-":
            try:
                json.loads(uris.read_bytes(uris.join(folder, names[-1])))
            except ValueError:
                return False
    return True


def sweep_on_ray(
    bench: Bench,
    strategy: Driver,
    out: str,
    on_trial: OnTrial,
    *,
    concurrent: int | None = None,
    budget_hours: float | None = None,
) -> ray.tune.ResultGrid:
    """Run the sweep to its end. ``concurrent`` trials are in flight at once (default: what keeps the pool busy).

    Raises InputError when ``budget_hours`` (of all workers together) are too few to confirm anything.
    """
    bench.require_here()
    keep_aws_keys_out_of_trials()
    with session(), contextlib.ExitStack() as ends:
        bench.require()
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        pool = bench.start()
        ends.callback(pool.stop)
        if budget_hours is not None:
            limit_hours(strategy, budget_hours, bench, pool.queue, out)
        most = concurrent or concurrency(bench.workers)
        judges = start_judges(bench.store, bench.reference, most)
        ends.callback(judges.stop)
        StrategySearcher.current = StrategySearcher(strategy, on_trial, len(judges.actors))
        generator = ray.put(bench.generator())
        trainable = ray.tune.with_resources(
            ray.tune.with_parameters(evaluate, queue=pool.queue, judges=judges.actors, generator=[generator]),
            {"cpu": TRIAL_CPUS},
        )
        log, name = uris.join(out, "log"), _experiment(bench, strategy, budget_hours)
        tuner = _restored(uris.join(log, name), trainable) or _new(log, name, trainable, most)
        return tuner.fit()


def _restored(folder: str, trainable: Any) -> ray.tune.Tuner | None:
    """What was in flight is not taken up by Tune, but asked for again by the strategy: the two files of the state are
    not of one moment when the driver was killed between them."""
    if not can_restore(folder):
        return None
    return ray.tune.Tuner.restore(folder, trainable, resume_unfinished=False)


def _new(log: str, name: str, trainable: Any, most: int) -> ray.tune.Tuner:
    return ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=StrategySearcher.current,
            num_samples=-1,
            max_concurrent_trials=most,
            reuse_actors=True,
            metric="fid",
            mode="min",
            trial_name_creator=lambda trial: f"eval_{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"eval_{trial.trial_id}",
        ),
        run_config=ray.tune.RunConfig(
            name=name,
            storage_path=log,
            verbose=0,
            # A trial whose node is lost starts again, on chunks that are kept.
            failure_config=ray.tune.FailureConfig(max_failures=5),
            callbacks=[JsonLoggerCallback(), CSVLoggerCallback()],
        ),
    )
