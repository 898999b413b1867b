"""What is said while an extractor's weights come: bytes of a download, passes of a training."""

from __future__ import annotations

from edm_ray.cli.progress import Progress


class WeightsProgress:
    """One for each command."""

    def __init__(self) -> None:
        self.lines = {"download": Progress("MiB of the weights"), "training": Progress("passes over the images")}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == "download":
            self.download(done, total)
        else:
            self.lines[what].update(done, total)

    def download(self, done: int, total: int) -> None:
        self.lines["download"].update(done / 2**20, total / 2**20)
