"""Check this machine or a cluster: versions, devices, memory, storage, weights, clocks, ports, authentication.

The exit code is 0 if all is well, else 1; each failing line says how to fix it. With --address http://HOST:8265 the
check runs there as a job; without it, on the cluster that RAY_ADDRESS names, or on this machine."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edm_ray.cli.console import Reports, report, say
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args(Reports):
    address: str | None = None
    """http://HOST:8265 of a cluster's job API, or HOST:6379 of the cluster itself."""
    storage: str | None = None
    """Where you will keep runs: s3://BUCKET/PREFIX or a shared folder. Tries to write, list, read and delete there."""
    weights: str | None = None
    """The extractor's weights: a path on every node, or s3:// URI."""
    sha256: str | None = None
    """Expected sha256 of the weights; default: the digits at the end of the file's name, if there are any."""
    device: Literal["cpu", "cuda"] = "cpu"
    """With cuda, a cluster without a GPU fails the check."""
    insecure: bool = False
    """With --address http://...: allow a cluster on another machine that asks for no token."""


def run(args: Args) -> int:
    if args.address is not None and "://" in args.address:
        return _as_job(args)
    from edm_ray.distributed.cluster.doctor import examine
    from edm_ray.distributed.cluster.probe import Question

    storage = None if args.storage is None else uris.absolute(args.storage)
    weights = None if args.weights is None else uris.absolute(args.weights)
    findings = examine(Question(storage=storage, weights=weights, sha256=args.sha256, device=args.device), args.address)
    report({"findings": [vars(finding) for finding in findings], "ok": all(finding.ok for finding in findings)})
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        say(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check:<{width}}  {finding.found}")
        if not finding.ok:
            say(f"      {'':<{width}}  fix: {finding.fix}")
    failed = sum(not finding.ok for finding in findings)
    say("all is well" if not failed else f"{failed} of {len(findings)} checks failed")
    return 1 if failed else 0


def _as_job(args: Args) -> int:
    from edm_ray.cli import submit

    command = ["doctor", "--device", args.device]
    for name in ("storage", "weights", "sha256"):
        if value := getattr(args, name):
            command += [f"--{name}", value]
    with tempfile.TemporaryDirectory() as nothing:
        # The package travels, for nodes that have none of their own; whatever else lies here is not needed there.
        here = "." if Path("edm_ray/distributed/cluster/doctor.py").is_file() else nothing
        return submit.run(
            submit.Args(command=tuple(command), address=args.address, insecure=args.insecure, working_dir=here)
        )
