"""What may be sent to a cluster's job API, and to which: addresses, tokens, the size of an upload, variables.

Whoever can reach a cluster's job API can run any code on it (that is what it is for), so a cluster beyond this machine
is only used when it asks for a token (SECURITY.md).
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import requests

from edm_ray.distributed.ray_private import files_that_travel, job_api_of, sends_token
from edm_ray.errors import InputError

logger = logging.getLogger(__name__)
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
MAX_BYTES = 50 << 20
"""Ray takes uploads up to 100 MiB; code is far smaller, so more than this is data that was left lying about."""
RESULTS = ("/data", "/refs", "/runs", "/evals", "/sweeps", "/models", "/demo")
"""Where the guides put data and results: none of it travels with a job, .rayignore or not."""
EXCLUDES = (
    *RESULTS,
    ".git",
    ".venv",
    "__pycache__",
    "*.egg-info",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
)
_SECRET_WORDS = ("SECRET", "TOKEN", "PASSW", "PGPASS", "PASSPHRASE", "CREDENTIAL", "PRIVATE")
_SECRET_NAMES = re.compile(r"(?:^|_)(?:PAT|KEY|APIKEY|PWD|PASS|PGPASS|AUTH|COOKIE|DSN)(?:_|$)|PASS$|KEY_?ID$")
"""A part of a name between underscores, so that KEYBOARD and COMPASS_X are none."""
_SECRET_VALUES = re.compile(
    r"://[^/\s@]*:[^/\s@]+@"  # a URL with a password
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{12,}"  # AWS keys
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-)[0-9A-Za-z_-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\beyJ[0-9A-Za-z_-]{10,}\.eyJ"  # a JSON web token
)


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable looks like a secret, by its name or by its value."""
    upper = name.upper()
    return (
        any(word in upper for word in _SECRET_WORDS)
        or bool(_SECRET_NAMES.search(upper))
        or bool(_SECRET_VALUES.search(value))
    )


def find_address(given: str | None) -> str:
    """The job API's URL: what was given, else RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else this machine's."""
    address = given or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), DEFAULT_ADDRESS)
    if "://" not in address and not given:
        address = job_api_of(address)  # HOST:PORT of the cluster, as RAY_ADDRESS has on a node
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
    if not sends_token():
        raise InputError(
            f"{address}: not this machine, and no token would be sent: anyone who reaches that cluster could run code "
            "on it. Start it with RAY_AUTH_MODE=token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here, or reach "
            "it through a tunnel (ssh -L 8265:127.0.0.1:8265 HEAD); --insecure continues all the same"
        )
    try:
        bare = requests.get(f"{address}/api/jobs/", timeout=30, allow_redirects=False)
    except requests.RequestException as error:
        raise InputError(unreachable(address, error)) from error
    if bare.status_code == 200:
        raise InputError(
            f"{address}: lists its jobs to anyone, without a token; restart the cluster with RAY_AUTH_MODE=token on "
            "every node. --insecure continues all the same"
        )
    if urlsplit(address).scheme == "http":
        logger.warning(
            "%s: the token goes there in the clear, and whoever reads it on the way can run code; use https, or a "
            "tunnel (ssh -L 8265:127.0.0.1:8265 HEAD) and --address http://127.0.0.1:8265",
            address,
        )


def unreachable(address: str, error: object) -> str:
    return (
        f"{address}: no answer from a Ray job API there ({type(error).__name__}); is the cluster up, and the port "
        "forwarded? Give --address http://HOST:8265"
    )


def holds_package(working_dir: Path) -> bool:
    """Whether a working directory is a clone: then its code travels with it and is what the job runs."""
    return (working_dir / "edm_ray" / "__init__.py").is_file()


def upload_sizes(working_dir: Path) -> list[tuple[int, str]]:
    """(bytes, path) of every file that would travel, largest first: without .gitignore, .rayignore and EXCLUDES."""
    root = working_dir.absolute()
    paths = files_that_travel(root, list(EXCLUDES))
    return sorted(((path.stat().st_size, str(path.relative_to(root))) for path in paths), reverse=True)


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


def job_variables(pairs: Sequence[str]) -> dict[str, str]:
    """``["NAME=VALUE"]`` -> variables for the job; secrets are refused: Ray shows them to whoever lists jobs."""
    variables = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--env {pair.split('=')[0]}: expected NAME=VALUE")
        if looks_secret(name, value):
            raise InputError(
                f"--env {name}: looks like a secret, and a job's variables are shown to everyone who can list jobs; "
                "give the nodes a role or a mounted secret instead"
            )
        variables[name] = value
    return variables
