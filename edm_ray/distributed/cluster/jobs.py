"""Jobs over HTTP with Ray's own client: submit a command, follow its log, stop it. `job_checks` is asked first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from edm_ray.distributed.cluster.job_checks import (
    ADDRESS_VARIABLES,
    EXCLUDES,
    check_upload,
    holds_package,
    require_authentication,
    unreachable,
)
from edm_ray.distributed.ray_private import silence_job_client
from edm_ray.errors import InputError

ENTRYPOINT = ("python", "-m", "edm_ray.cli.job")
RESULT_KEY = "edm_ray_out"
PACKAGE = Path(__file__).parents[2]
RECONNECTS = 5


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    id: str
    status: str
    code: int
    """What `edm-ray submit` returns: 0, the job's own code, or 143 when it was stopped."""
    message: str


@contextlib.contextmanager
def job_client(address: str, insecure: bool = False) -> Iterator[JobSubmissionClient]:
    """Ray's client for the job API at ``address`` (`find_address`); what it raises within becomes an InputError."""
    require_authentication(address, insecure)
    silence_job_client()
    try:
        yield _client(address)
    except (ConnectionError, requests.RequestException) as error:
        raise InputError(unreachable(address, error)) from error
    except AuthenticationError as error:
        raise InputError(
            f"{address}: the token was refused or is missing; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
            "(or RAY_AUTH_TOKEN) to the cluster's token"
        ) from error
    except RuntimeError as error:
        raise InputError(f"{address}: {error}") from error


def _client(address: str) -> JobSubmissionClient:
    """Ray's client lets these variables override the address it is given; an address that was checked must stay."""
    saved = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        return JobSubmissionClient(address)
    finally:
        os.environ.update(saved)


def submit(
    client: JobSubmissionClient,
    command: Sequence[str],
    working_dir: Path,
    out: str | None,
    variables: dict[str, str],
) -> str:
    """Submit `edm-ray COMMAND`; returns the job's id. ``out`` is where it writes, or None.

    Where the working directory is no clone, the installed package travels too, so that the job runs the code of here.

    A job that writes to the same place and has not ended is named and refused: two would disturb each other.
    """
    check_upload(working_dir)
    runtime_env: dict[str, Any] = {"working_dir": str(working_dir.absolute()), "excludes": list(EXCLUDES)}
    if not holds_package(working_dir):
        runtime_env["py_modules"] = [str(PACKAGE)]
    if variables:
        runtime_env["env_vars"] = variables
    for job in [] if out is None else client.list_jobs():
        if not job.status.is_terminal() and (job.metadata or {}).get(RESULT_KEY) == out:
            raise InputError(
                f"--out {out}: job {job.submission_id} is {job.status} and writes there; follow it with "
                f"--follow {job.submission_id}, or end it with --stop {job.submission_id}"
            )
    job_id: str = client.submit_job(
        entrypoint=shlex.join([*ENTRYPOINT, *command]),
        runtime_env=runtime_env,
        metadata={} if out is None else {RESULT_KEY: out},
    )
    return job_id


def submitted(client: JobSubmissionClient) -> list[JobDetails]:
    """Jobs that were submitted, oldest first."""
    return sorted((job for job in client.list_jobs() if job.submission_id), key=lambda job: job.start_time or 0)


def stop(client: JobSubmissionClient, job: str, timeout_s: float = 60.0) -> Outcome:
    """WorkerRequest a job to end (SIGTERM, then SIGKILL after Ray's own wait) and wait until it has."""
    client.stop_job(job)
    deadline = time.monotonic() + timeout_s
    while not (details := client.get_job_info(job)).status.is_terminal():
        if time.monotonic() > deadline:
            raise InputError(f"{job}: still {details.status} after {timeout_s:g} s; see --status {job}")
        time.sleep(0.25)
    return outcome_of(details)


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> Outcome:
    """Hand on the job's log until it ends. A connection that breaks is taken up again where it broke."""
    written, failures = 0, 0
    while True:
        try:
            written = asyncio.run(_tail(client, job, written, write))
            if (details := client.get_job_info(job)).status.is_terminal():
                return outcome_of(details)
            failures = 0
        except (RuntimeError, OSError) as error:
            failures += 1
            if failures > RECONNECTS:
                raise InputError(
                    f"{job}: the log broke off {failures} times ({error}); the job itself may go on: "
                    f"edm-ray submit --follow {job}"
                ) from error
        time.sleep(min(0.25 * 2**failures, 10.0))


async def _tail(client: JobSubmissionClient, job: str, skip: int, write: Callable[[str], None]) -> int:
    """Write what comes after the first ``skip`` characters; returns how many there are now."""
    seen = 0
    async for text in client.tail_job_logs(job):
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
