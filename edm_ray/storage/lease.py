"""One writer a folder: who writes there holds its lease, says who it is, and gives a sign of life every few seconds.

Leases are files of ascending number in FOLDER/.lease; the highest counts. Each is created only where there is none (a
conditional put on S3, a hard link locally), so of several who want the next number one gets it. A lease whose holder is
dead is superseded by the next number: at once where its process was on this machine and is gone, else when it has given
no sign for TTL_S by the store's clock, and gives none while one watches. A holder that was only asleep finds the higher
number before its next write (`uris.guards`), and stops.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.s3 import impatient

FOLDER = ".lease"
FORMAT = 1
BEAT_S = 5.0
"""Between two signs of life."""
TTL_S = 30.0
"""Without a sign for so long a holder may be dead."""
WATCH_S = 7.0
"""And is, when it gives none for so long either; a wrong clock shows here."""
DECIDED_S = 9.5
logger = logging.getLogger(__name__)


class LeaseLost(InputError):
    """Another writer has taken the folder over; nothing more may be written there."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease, in plain JSON values."""

    command: str
    host: str
    pid: int
    since: str
    place: str
    """Machine, boot and process namespace: where ``pid`` means anything."""
    started: str
    """Of the process, in ticks since boot: numbers are used again."""
    token: str
    """Random: one lease."""

    @staticmethod
    def this(command: str) -> Holder:
        return Holder(
            command=command,
            host=socket.gethostname(),
            pid=os.getpid(),
            since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            place=_place(),
            started=_started(os.getpid()),
            token=secrets.token_hex(8),
        )

    def is_gone(self) -> bool:
        """Whether it was a process of this machine, and that is no more."""
        return bool(self.started) and self.place == _place() and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"`edm-ray {self.command}` on {self.host}, pid {self.pid}, since {self.since}"


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Of one folder. It may be handed to other processes that write for its holder."""

    uri: str
    number: int
    token: str

    @property
    def path(self) -> str:
        return _path(self.uri, self.number)

    def check(self) -> None:
        """Raises LeaseLost unless this is still the lease of the folder."""
        there = _numbers(self.uri)
        if there[-1:] == [self.number]:
            try:
                holder = _read(self.path)
            except uris.NotFound:
                holder = None
            if holder is not None and holder.token == self.token:
                return
            there = _numbers(self.uri)
        raise LeaseLost(
            f"{self.uri}: {_who(self.uri, there)}, while this one gave no sign of life for a while; this one has "
            "stopped and writes no more"
        )

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Meanwhile this process looks before each write below the folder whether the lease still holds."""
        with _guarding(self.uri, self.check):
            yield

    def guard_process(self) -> None:
        """As `guard`, for a process that writes for the holder as long as it lives."""
        uris.guards[self.uri] = self.check


@contextlib.contextmanager
def hold(uri: str | None, command: str) -> Iterator[Lease | None]:
    """The lease of a folder, renewed until the end; None: nothing is written, and nothing is held.

    Raises InputError within ten seconds when another living writer holds it, and says who. Within `hold` of the same
    folder in the same thread it is the same lease.
    """
    if uri is None:
        yield None
        return
    uri, thread = uris.resolve(uri), threading.get_ident()
    if (own := _held.get(uri)) is not None and own.thread == thread:
        yield own.lease
        return
    new = not uris.is_remote(uri) and not Path(uri).exists()
    keeper = _Keeper(_acquire(uri, command), thread)
    _held[uri] = keeper
    try:
        with _guarding(uri, keeper.check):
            yield keeper.lease
    finally:
        del _held[uri]
        keeper.end()
        if new:  # what was refused after all leaves no empty folder behind
            with contextlib.suppress(OSError):
                Path(uri).rmdir()


def held() -> tuple[Lease, ...]:
    """All that this process holds, for the processes that write for it."""
    return tuple(keeper.lease for keeper in _held.values())


class _Keeper:
    """Renews a lease in the background, and knows when it last held."""

    def __init__(self, lease: Lease, thread: int) -> None:
        self.lease, self.thread = lease, thread
        self.lost: LeaseLost | None = None
        self.sure = _now()
        self.ends = threading.Event()
        self.beats = threading.Thread(target=self._beat, name="lease", daemon=True)
        self.beats.start()

    def _beat(self) -> None:
        while not self.ends.wait(BEAT_S):
            began = _now()
            try:
                with impatient():
                    self.lease.check()
                    uris.touch(self.lease.path)
                self.sure = began
            except LeaseLost as error:
                self.lost = error
                return
            except (OSError, InputError) as error:
                # Storage is away; the writes themselves say so.
                logger.debug("%s: no sign of life: %s", self.lease.path, error)

    def check(self) -> None:
        """Nobody can have taken it within TTL_S of the last sign of life; later, look."""
        if self.lost is not None:
            raise self.lost
        if _now() - self.sure > TTL_S / 2:
            began = _now()
            self.lease.check()
            self.sure = began

    def end(self) -> None:
        self.ends.set()
        self.beats.join()
        if self.lost is None:
            with contextlib.suppress(OSError, InputError), impatient():
                self.lease.check()
                uris.delete_directory(uris.join(self.lease.uri, FOLDER))


_held: dict[str, _Keeper] = {}


@contextlib.contextmanager
def _guarding(uri: str, check: Any) -> Iterator[None]:
    before = uris.guards.get(uri)
    uris.guards[uri] = check
    try:
        yield
    finally:
        if before is None:
            del uris.guards[uri]
        else:
            uris.guards[uri] = before


def _acquire(uri: str, command: str) -> Lease:
    deadline = time.monotonic() + DECIDED_S
    while True:
        there = _numbers(uri)
        number = there[-1] if there else 0
        if there and (holder := _living(uri, number, deadline)) is not None:
            raise _refusal(uri, number, holder)
        me = Holder.this(command)
        text = json.dumps({"format": FORMAT, **asdict(me)}, indent=1).encode()
        if uris.create_bytes(_path(uri, number + 1), text) and _numbers(uri)[-1:] == [number + 1]:
            break
        if time.monotonic() > deadline:
            raise InputError(f"{uri}: {_who(uri, _numbers(uri))}; choose another place, or wait until it has ended")
    for old in there:
        uris.delete(_path(uri, old))
    return Lease(uri=uri, number=number + 1, token=me.token)


def _living(uri: str, number: int, deadline: float) -> Holder | None:
    """Who holds the lease of this number, if that is alive."""
    path = _path(uri, number)
    try:
        holder, (modified, now) = _read(path), uris.modified(path)
        if holder is None:  # not readable: its age alone decides
            holder = Holder(command="?", host="?", pid=0, since="?", place="", started="", token="")
        if holder.is_gone():
            return None
        if abs(now - modified) < TTL_S:
            return holder
        ends = min(time.monotonic() + WATCH_S, deadline)
        while time.monotonic() < ends:
            time.sleep(min(0.5, WATCH_S / 4))
            if uris.modified(path)[0] != modified:
                return holder
    except uris.NotFound:
        pass  # it has just ended
    return None


def _refusal(uri: str, number: int, holder: Holder) -> InputError:
    return InputError(
        f"{uri}: {holder} is writing here; wait until it has ended, or choose another place. If its machine is gone, "
        f"run the same command again {TTL_S:.0f} s after that"
    )


def _who(uri: str, there: list[int]) -> str:
    with contextlib.suppress(uris.NotFound):
        if there and (holder := _read(_path(uri, there[-1]))) is not None:
            return f"{holder} has taken it over"
    return "its lease (.lease) is gone: the folder was deleted, or another writer had it"


def _path(uri: str, number: int) -> str:
    return uris.join(uri, FOLDER, f"{number:06d}.json")


def _numbers(uri: str) -> list[int]:
    names = (name.removesuffix(".json") for name in uris.list_names(uris.join(uri, FOLDER)) if name.endswith(".json"))
    return sorted(int(name) for name in names if name.isdecimal())


def _read(path: str) -> Holder | None:
    """None: damaged, or of another version."""
    try:
        content = json.loads(uris.read_bytes(path))
        return Holder(**content) if content.pop("format") == FORMAT else None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        return None


def _place() -> str:
    """This machine since its boot, and this namespace of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When the process was started; '' when it is not there, dead, or this system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _now() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
