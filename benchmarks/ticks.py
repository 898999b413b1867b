"""In the workers of `training_steps`: when each tick ended, and how long Ray's own calls took since the last."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerCallback


class Ticks(WorkerCallback):
    """Ray Train makes one in every worker (RAY_TRAIN_CALLBACKS)."""

    def after_init_train_context(self) -> None:
        import ray.train

        if ray.train.get_context().get_world_rank() != 0:
            return
        waited = [0.0]

        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                began = time.monotonic()
                try:
                    return call(*args, **kwargs)
                finally:
                    waited[0] += time.monotonic() - began

            return wrapped

        report = timed(ray.train.report)

        def noted(metrics: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            result = report(metrics, *args, **kwargs)
            with Path(os.environ["EDM_RAY_BENCHMARK_TICKS"]).open("a", encoding="utf-8") as file:
                file.write(json.dumps([time.monotonic(), metrics["nimg"], waited[0]]) + "\n")
            waited[0] = 0.0
            return result

        ray.train.report = noted
        ray.train.get_preemption_info = timed(ray.train.get_preemption_info)
