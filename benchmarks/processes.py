"""Processes of a command and what they used, from /proc (Linux)."""

from __future__ import annotations

import os
import time
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def family(root: int) -> list[int]:
    """This process and all below it."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                parents[int(path.name)] = int(_fields(int(path.name))[1])
            except OSError:
                continue
    found, new = [root], [root]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new and pid not in found]
        found += new
    return [pid for pid in found if pid in parents]


def cpu_seconds(root: int) -> dict[int, float]:
    """By process of the family: user and system time."""
    result = {}
    for pid in family(root):
        try:
            fields = _fields(pid)
        except OSError:
            continue
        result[pid] = (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
    return result


def kind_of(pid: int, root: int) -> str:
    """The driver, a worker that trains, or the name that Ray gives a process of its own."""
    if pid == root:
        return "driver"
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone"
    if "RayTrainWorker" in title or "--torchrun-worker" in title:
        return "worker"
    if title.startswith("ray::"):
        return title.split()[0].split(".")[0].removeprefix("ray::").split("(")[0]
    for name in ("gcs_server", "raylet", "dashboard", "log_monitor", "monitor.py"):
        if name in title.split(" --")[0]:
            return name
    return "other"


def process_began() -> float:
    """When this process was started, as time.time() tells it."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(_fields(os.getpid())[19]) / TICKS_A_SECOND
