"""Who draws a snapshot: without Ray a process of its own at the lowest priority, with Ray a task.

A task is started only when the cluster holds it and all workers of the training together, and is cancelled when that is
so no longer (a node was lost): workers that start again never wait for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, Protocol

from edm_ray.errors import InputError
from edm_ray.generation.snapshot import LOWEST_PRIORITY, Job, draw
from edm_ray.training.snapshots import Record


class Runner(Protocol):
    """Has one job done at a time."""

    def obstacle(self) -> str | None:
        """Why nothing can run beside the training now; None when it can."""

    def start(self, job: Job) -> None: ...

    def result(self) -> Record | None:
        """The record when the job is done, None while it is not. Raises what went wrong."""

    def cancel(self) -> None: ...


class ProcessRunner:
    """A process of this machine, at the lowest priority, with one thread."""

    def __init__(self, device: str) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("--snapshot-on: this machine has no CUDA device; give cpu or after")
        self.process: subprocess.Popen[str] | None = None

    def obstacle(self) -> str | None:
        return None

    def start(self, job: Job) -> None:
        # Files, not pipes: a library that says much cannot fill them.
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        with tempfile.TemporaryFile("w+") as given:
            given.write(job.to_json())
            given.seek(0)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edm_ray.generation.snapshot"],
                stdin=given,
                stdout=self.output,
                stderr=self.errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def result(self) -> Record | None:
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return None
        texts = []
        for file in (self.output, self.errors):
            file.seek(0)
            texts.append(file.read().strip().splitlines())
            file.close()
        if code != 0:
            raise RuntimeError(texts[1][-1] if texts[1] else f"its process ended with {code}")
        record: Record = json.loads(texts[0][-1])
        return record

    def cancel(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _draw_as_task(job: Job) -> Record:
    os.nice(LOWEST_PRIORITY)  # for good, so the worker process is used for nothing else (max_calls)
    return draw(job)


class RayRunner:
    """A task of the cluster that this process is connected to. ``workers``: of the training, at most, each
    with ``gpus`` of a GPU or ``threads`` CPUs. What they leave of their own GPUs is room for the task."""

    def __init__(
        self, device: str, share: float, workers: int, training_device: str, threads: int = 1, gpus: float = 1.0
    ) -> None:
        import ray

        from edm_ray.distributed.shipping import environment

        self.ray, self.kind, self.share = ray, "CPU" if device == "cpu" else "GPU", share
        same = (device == "cpu") == (training_device == "cpu")
        self.reserved = float(workers * (gpus if device == "cuda" else threads)) if same else 0.0
        resources = {"num_cpus": 1.0} if device == "cpu" else {"num_cpus": 0.0, "num_gpus": share}
        self.task = ray.remote(max_retries=0, max_calls=1, runtime_env=environment() or None, **resources)(
            _draw_as_task
        )
        self.call: Any = None
        self.require()

    def require(self) -> None:
        """Raises InputError when no node of the cluster could ever hold it."""
        from edm_ray.distributed.cluster.preflight import may_grow_to, nodes_there

        if all(node.get(self.kind, 0.0) < self.share for node in nodes_there()) and not may_grow_to(self.kind):
            raise InputError(
                f"--snapshot-on: a snapshot needs {self.share:g} {self.kind}s on one node, and no node of the cluster "
                "has them; give cpu or after"
            )

    def obstacle(self) -> str | None:
        from edm_ray.distributed.cluster.preflight import nodes_there, total

        have = total(nodes_there(), self.kind)
        if have - self.reserved >= self.share - 1e-9:
            return None
        return f"the cluster has {have:g} {self.kind}s, training may take {self.reserved:g}, a snapshot {self.share:g}"

    def start(self, job: Job) -> None:
        self.require()
        self.call = self.task.remote(job)

    def result(self) -> Record | None:
        from edm_ray.distributed.dispatcher import cause_of

        if not self.ray.wait([self.call], timeout=0)[0]:
            return None
        try:
            record: Record = self.ray.get(self.call)
        except self.ray.exceptions.RayError as error:
            raise cause_of(error) from None
        return record

    def cancel(self) -> None:
        if self.call is not None:
            self.ray.cancel(self.call, force=True)
