"""Run a command as a job on a Ray cluster: `edm-ray submit [OPTIONS] -- train --data s3://... --out s3://... ...`

The log is shown here and the job's exit code is returned. Submitting the same job again resumes it: results go to
--out, never to the working directory. The current directory travels with the job, without what .gitignore and
.rayignore name."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from edm_ray.cli.console import Reports, duration, lines_to, report, say
from edm_ray.cli.job import check_places, parse
from edm_ray.errors import InputError
from edm_ray.execution.stopping import Interrupted


@dataclass(frozen=True)
class Args(Reports):
    command: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The command and its options, after `--`."""
    address: str | None = None
    """URL of the cluster's job API, http://HOST:8265. Default: RAY_ADDRESS, else this machine."""
    working_dir: str = "."
    """Folder to upload with the job: code and small files, at most 50 MiB."""
    env: list[str] = field(default_factory=list)
    """NAME=VALUE environment variables for the job. No secrets: whoever can list jobs sees them."""
    detach: bool = False
    """Return as soon as the job is submitted."""
    jobs: Annotated[bool, tyro.conf.arg(name="list")] = False
    """List the cluster's jobs."""
    status: str | None = None
    """Show the status of a job."""
    follow: str | None = None
    """Show the log of a submitted job until it ends."""
    stop: str | None = None
    """Stop a job; submitting it again resumes it."""
    insecure: bool = False
    """Allow a cluster on another machine that asks for no token."""


def run(args: Args) -> int:
    asked = [args.jobs, args.status, args.follow, args.stop, args.command]
    if sum(bool(part) for part in asked) != 1:
        raise InputError("give one of: -- COMMAND ..., --list, --status ID, --follow ID, --stop ID")
    if args.command:
        return _submit(args)
    from edm_ray.distributed.cluster.job_checks import find_address
    from edm_ray.distributed.cluster.jobs import job_client, outcome_of, stop, submitted

    with job_client(find_address(args.address), args.insecure) as client:
        if args.jobs:
            jobs = submitted(client)
            report({"jobs": [_facts(job) for job in jobs]})
            for job in jobs:
                started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000))
                say(f"{job.submission_id}  {job.status!s:<10} {started}  {job.entrypoint}")
        elif args.status:
            details = client.get_job_info(args.status)
            report(_facts(details))
            say(f"{args.status}: {details.status}. {details.message or ''}".rstrip())
            return outcome_of(details).code if details.status.is_terminal() else 0
        elif args.stop:
            say(f"{args.stop}: {stop(client, args.stop).status}")
        elif args.follow:
            return _follow(client, args.follow)
    return 0


def _facts(job: Any) -> dict[str, Any]:
    return {
        "job": job.submission_id,
        "status": str(job.status),
        "started_ms": job.start_time,
        "entrypoint": job.entrypoint,
        "message": job.message,
    }


def _submit(args: Args) -> int:
    name, options = parse(args.command)
    working_dir = Path(args.working_dir).expanduser()
    check_places(name, options, working_dir)
    from edm_ray.distributed.cluster.job_checks import check_upload, find_address, job_variables
    from edm_ray.distributed.cluster.jobs import job_client, submit

    variables = job_variables(args.env)
    size = check_upload(working_dir)
    address = find_address(args.address)
    out = getattr(options, "out", None) or getattr(options, "dest", None)
    with job_client(address, args.insecure) as client:
        job = submit(client, args.command, working_dir, out, variables)
        report({"job": job, "address": address, "working_dir": str(working_dir.absolute()), "bytes": size})
        say(f"{job}: submitted to {address}; {size / 2**20:.1f} MiB of {working_dir.absolute()} travel with it")
        if args.detach:
            say(f"  edm-ray submit --address {address} --follow {job}")
            return 0
        return _follow(client, job)


def _follow(client: Any, job: str) -> int:
    from edm_ray.distributed.cluster.jobs import follow

    started = time.monotonic()

    def write(text: str) -> None:
        lines_to().write(text)
        lines_to().flush()

    try:
        outcome = follow(client, job, write)
    except KeyboardInterrupt as interrupted:
        say(f"\n{job}: runs on unwatched; --follow {job} shows it again, --stop {job} ends it")
        return interrupted.code if isinstance(interrupted, Interrupted) else 130
    say(f"{job}: {outcome.status} after {duration(time.monotonic() - started)}")
    if outcome.code:
        say(f"  {outcome.message}")
        say("  the same command, submitted again, resumes where this one stopped")
    return outcome.code
