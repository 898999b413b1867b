"""Jobs over HTTP: submit, follow, stop. What may be uploaded, and to whom, is checked first.

Whoever can reach a cluster's job API can run any code on it (that is what it is for), so a cluster beyond this machine
is only used when it asks for a token (SECURITY.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
from ray.dashboard.utils import get_address_for_submission_client
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from edm_ray.errors import InputError

logger = logging.getLogger(__name__)
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
MAX_BYTES = 50 << 20
"""Ray takes uploads up to 100 MiB; code is far smaller, so more than this is data that was left lying about."""
EXCLUDES = (".git", ".venv", "__pycache__", "*.egg-info", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis")
ENTRYPOINT = ("python", "-m", "edm_ray.cli.job")
RESULT_KEY = "edm_ray_out"
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_SECRET_WORDS = ("SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "ACCESS_KEY", "API_KEY", "PRIVATE")
RECONNECTS = 5


def find_address(given: str | None) -> str:
    """The job API's URL: what was given, else RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else this machine's."""
    address = given or next((os.environ[name] for name in _ADDRESS_VARIABLES if os.environ.get(name)), DEFAULT_ADDRESS)
    if "://" not in address and given:
        raise InputError(f"--address {address}: give the job API's URL, for example http://HOST:8265")
    if "://" not in address:
        address = get_address_for_submission_client(address)  # a GCS address, as RAY_ADDRESS has on a node
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--address {address}: give the job API's URL, for example http://HOST:8265")
    if "@" in parts.netloc:
        raise InputError("an address with credentials in it is refused; set RAY_AUTH_TOKEN_PATH instead")
    return address.rstrip("/")


def is_loopback(address: str) -> bool:
    """Whether a URL leads to this machine alone."""
    host = urlsplit(address).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_authentication(address: str, insecure: bool) -> None:
    """Refuse an address beyond this machine unless a token is sent and the cluster asks for one."""
    if insecure or is_loopback(address):
        return
    if not is_token_auth_enabled():
        raise InputError(
            f"{address}: not this machine, and no token would be sent: anyone who reaches that cluster could run code "
            "on it. Start it with RAY_AUTH_MODE=token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here, or reach "
            "it through a tunnel (ssh -L 8265:127.0.0.1:8265 HEAD); --insecure goes on all the same"
        )
    try:
        bare = requests.get(f"{address}/api/jobs/", timeout=30, allow_redirects=False)
    except requests.RequestException as error:
        raise InputError(_unreachable(address, error)) from error
    if bare.status_code == 200:
        raise InputError(
            f"{address}: lists its jobs to anyone, without a token; restart the cluster with RAY_AUTH_MODE=token on "
            "every node. --insecure goes on all the same"
        )
    if urlsplit(address).scheme == "http":
        logger.warning(
            "%s: the token goes there in the clear, and whoever reads it on the way can run code; use https, or a "
            "tunnel (ssh -L 8265:127.0.0.1:8265 HEAD) and --address http://127.0.0.1:8265",
            address,
        )


def _unreachable(address: str, error: object) -> str:
    return (
        f"{address}: no answer from a Ray job API there ({type(error).__name__}); is the cluster up, and the port "
        "forwarded? Give --address http://HOST:8265"
    )


def upload_sizes(working_dir: Path) -> list[tuple[int, str]]:
    """(bytes, path) of every file that would travel, largest first: without .gitignore, .rayignore and EXCLUDES."""
    found: list[tuple[int, str]] = []

    def note(path: Path) -> None:
        if path.is_file():
            found.append((path.stat().st_size, str(path.relative_to(root))))

    root = working_dir.absolute()
    quiet = logging.getLogger("edm_ray.submit.upload")
    quiet.setLevel(logging.ERROR)
    _dir_travel(root, [_get_excludes(root, list(EXCLUDES))], note, include_gitignore=True, logger=quiet)
    return sorted(found, reverse=True)


def check_upload(working_dir: Path) -> int:
    """Total bytes that would travel. Raises InputError above MAX_BYTES, naming the largest files."""
    if not working_dir.is_dir():
        raise InputError(f"--working-dir {working_dir}: no such directory")
    sizes = upload_sizes(working_dir)
    total = sum(size for size, _ in sizes)
    if total > MAX_BYTES:
        largest = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for size, name in sizes[:5])
        raise InputError(
            f"--working-dir {working_dir}: {total / 2**20:.1f} MiB would travel with the job, at most "
            f"{MAX_BYTES >> 20} MiB may. Largest: {largest}. Name what is not code in .rayignore, and keep data at "
            "s3:// or on shared storage"
        )
    return total


def environment(pairs: Sequence[str]) -> dict[str, str]:
    """``["NAME=VALUE"]`` -> variables for the job; secrets are refused: Ray shows them to whoever lists jobs."""
    variables = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--env {pair.split('=')[0]}: expected NAME=VALUE")
        if any(word in name.upper() for word in _SECRET_WORDS):
            raise InputError(
                f"--env {name}: looks like a secret, and a job's variables are shown to everyone who can list jobs; "
                "give the nodes a role or a mounted secret instead"
            )
        variables[name] = value
    return variables


@contextlib.contextmanager
def _address_wins() -> Iterator[None]:
    """Ray's client lets these variables override the address it is given; an address that was checked must stay."""
    saved = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    id: str
    status: str
    code: int
    """What `edm-ray submit` returns: 0, the job's own code, or 143 when it was stopped."""
    message: str


class Cluster:
    """The job API at one address, checked."""

    def __init__(self, address: str | None, insecure: bool = False) -> None:
        self.address = find_address(address)
        require_authentication(self.address, insecure)
        for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._errors(), _address_wins():
            self.client = JobSubmissionClient(self.address)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (ConnectionError, requests.RequestException) as error:
            raise InputError(_unreachable(self.address, error)) from error
        except AuthenticationError as error:
            raise InputError(
                f"{self.address}: the token was refused or is missing; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
                "(or RAY_AUTH_TOKEN) to the cluster's token"
            ) from error
        except RuntimeError as error:
            raise InputError(f"{self.address}: {error}") from error

    def submit(self, command: Sequence[str], working_dir: Path, out: str | None, variables: dict[str, str]) -> str:
        """Submit `edm-ray COMMAND`; returns the job's id. ``out`` is where it writes, or None.

        A job that writes to the same place and has not ended is named and refused: two would disturb each other.
        """
        check_upload(working_dir)
        runtime_env: dict[str, Any] = {"working_dir": str(working_dir.absolute()), "excludes": list(EXCLUDES)}
        if variables:
            runtime_env["env_vars"] = variables
        with self._errors(), _address_wins():
            if out is not None:
                for job in self.client.list_jobs():
                    if not job.status.is_terminal() and (job.metadata or {}).get(RESULT_KEY) == out:
                        raise InputError(
                            f"--out {out}: job {job.submission_id} is {job.status} and writes there; follow it with "
                            f"--follow {job.submission_id}, or end it with --stop {job.submission_id}"
                        )
            return self.client.submit_job(
                entrypoint=shlex.join([*ENTRYPOINT, *command]),
                runtime_env=runtime_env,
                metadata={} if out is None else {RESULT_KEY: out},
            )

    def info(self, job: str) -> JobDetails:
        with self._errors(), _address_wins():
            return self.client.get_job_info(job)

    def jobs(self) -> list[JobDetails]:
        """Submitted jobs, oldest first."""
        with self._errors(), _address_wins():
            jobs = [job for job in self.client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0)

    def stop(self, job: str, timeout_s: float = 60.0) -> Outcome:
        """Ask a job to end (SIGTERM, then SIGKILL after Ray's own wait) and wait until it has."""
        with self._errors(), _address_wins():
            self.client.stop_job(job)
        deadline = time.monotonic() + timeout_s
        while not (details := self.info(job)).status.is_terminal():
            if time.monotonic() > deadline:
                raise InputError(f"{job}: still {details.status} after {timeout_s:g} s; see --status {job}")
            time.sleep(0.25)
        return outcome_of(details)

    def follow(self, job: str, write: Callable[[str], None]) -> Outcome:
        """Hand on the job's log until it ends. A connection that breaks is taken up again where it broke."""
        written, failures = 0, 0
        while True:
            try:
                written = asyncio.run(self._tail(job, written, write))
                details = self.info(job)
                if details.status.is_terminal():
                    return outcome_of(details)
                failures = 0
            except (RuntimeError, OSError, InputError) as error:
                failures += 1
                if failures > RECONNECTS:
                    raise InputError(
                        f"{job}: the log broke off {failures} times ({error}); the job itself may go on: "
                        f"edm-ray submit --follow {job}"
                    ) from error
            time.sleep(min(0.25 * 2**failures, 10.0))

    async def _tail(self, job: str, skip: int, write: Callable[[str], None]) -> int:
        """Write what comes after the first ``skip`` characters; returns how many there are now."""
        seen = 0
        async for text in self.client.tail_job_logs(job):
            if seen + len(text) > skip:
                write(text[max(0, skip - seen) :])
            seen += len(text)
        return max(seen, skip)


def outcome_of(details: JobDetails) -> Outcome:
    code = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 143}.get(details.status)
    if code is None:
        # A job that never ran (its environment could not be set up, its node died) has no code of its own.
        code = details.driver_exit_code if details.driver_exit_code and details.driver_exit_code > 0 else 1
    return Outcome(id=details.submission_id or "", status=str(details.status), code=code, message=details.message or "")
