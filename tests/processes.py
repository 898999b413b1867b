"""Ray's processes of this test session: others may run on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def ray_processes(title: str) -> list[tuple[int, str]]:
    """(id, command line) of those below this process whose command line begins with ``ray::`` and holds the title."""
    found = processes_below(os.getpid())
    return [(pid, command) for pid, command in found if command.startswith("ray::") and title in command]


def processes_below(root: int) -> list[tuple[int, str]]:
    """(id, command line)."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                command = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            pid = int(process.name)
            if root in _ancestors(pid):
                found.append((pid, command))
    return found


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1 and len(found) < 20:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found
