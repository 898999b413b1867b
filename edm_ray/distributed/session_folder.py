"""Where a local Ray keeps its session: logs, sockets, spilled objects. A folder that only its owner enters, removed at
the end; what a killed command left is removed by the next one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "edm-ray-"
HELD = "held"
"""A file that the living owner of a folder keeps locked; the lock goes with the process, however it ends."""
LONGEST_BASE = 30
"""Characters. Ray puts about 70 behind it, and the path of a socket may have 107."""
EMPTY_AGE_S = 3600.0


@contextmanager
def private_folder() -> Iterator[str]:
    """A folder of mode 0700 for the length of a session. Ray opens what it makes itself to everyone, so it gets a
    folder inside."""
    base = _base()
    remove_abandoned(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    lock = _hold(folder)
    try:
        yield str(folder / "ray")
    finally:
        _remove(folder)
        os.close(lock)


def remove_abandoned(base: Path) -> None:
    """Remove this user's session folders whose command is dead."""
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            if (folder / HELD).exists():
                abandoned = _is_free(folder / HELD)
            else:  # being made at this moment, or killed while it was
                abandoned = not any(folder.iterdir()) and time.time() - folder.stat().st_mtime > EMPTY_AGE_S
            if abandoned:
                _remove(folder)


def _base() -> Path:
    """As Ray chooses (RAY_TMPDIR, TMPDIR, /tmp), but /tmp where sockets below the other would have too long a name."""
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    usable = len(chosen) <= LONGEST_BASE and Path(chosen).is_dir() and Path(chosen).is_absolute()
    return Path(chosen) if usable else Path("/tmp")


def _hold(folder: Path) -> int:
    """Lock first, then give it its name: under its name the file is never without its lock."""
    lock = os.open(folder / f".{HELD}", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / f".{HELD}").rename(folder / HELD)
    return lock


def _is_free(path: Path) -> bool:
    with path.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _remove(folder: Path) -> None:
    """Ray's processes may write a last line while they end; what they put there meanwhile goes too."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
