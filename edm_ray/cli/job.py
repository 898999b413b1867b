"""A command as a Ray job: `python -m edm_ray.cli.job train ...`, which is what `jobs/*.py` and `edm-ray submit` run.

A job runs in an unpacked copy of the working directory that is deleted with it, so places for data and results must be
absolute paths that all nodes share, or s3:// URIs; a relative one is refused before anything starts.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edm_ray import cli
from edm_ray.cli.command import parse as parse_options
from edm_ray.data.importers.detect import BUILT_IN
from edm_ray.errors import InputError, nearest
from edm_ray.search import shipped
from edm_ray.storage import uris

JOB_COMMANDS = ("prepare", "train", "reference", "generate", "evaluate", "sweep", "doctor")

PLACES = ("dest", "out", "data", "model", "guide", "reference", "real", "weights", "store", "follow", "storage")
"""Options that name data or results: they are needed after the job, so they must not lie in its working directory."""
CARRIED = ("config", "space", "sampler")
"""Options that name small files, which may travel in the working directory."""


def parse(command: Sequence[str]) -> tuple[str, Any]:
    """``["train", "--data", ...]`` -> command name and its options, checked as the command itself would."""
    if not command:
        raise InputError(f"no command to run; give one of: {', '.join(JOB_COMMANDS)}, with its options")
    name = command[0]
    if name not in JOB_COMMANDS:
        raise InputError(
            f"{name}: not a command that runs as a job{nearest(name, JOB_COMMANDS)}; there are: "
            f"{', '.join(JOB_COMMANDS)}"
        )
    return name, parse_options(name, command[1:])[1]


def check_places(name: str, args: Any, working_dir: Path | None = None) -> None:
    """Raise InputError for options that name a place inside the job's own working directory.

    ``working_dir``: where files that travel with the job must be; None when the job is running already.
    """
    given = _flat(args)
    places = [(key, value) for key in PLACES for value in _texts(given.get(key))]
    for key, value in places:
        if not _is_absolute(value):
            raise InputError(
                f"{_label(name, key)} {value}: relative, and a job's working directory is deleted with the job; give "
                f"s3://BUCKET/{Path(value).name} or an absolute path that all nodes share"
            )
    source = given.get("source")
    if name == "prepare" and source not in BUILT_IN and not _is_absolute(str(source)):
        raise InputError(
            f"SOURCE {source}: relative; pictures do not travel with a job. Give s3://BUCKET/... or an absolute path "
            "that all nodes share"
        )
    if working_dir is None:
        return
    from edm_ray.distributed.cluster.job_checks import RESULTS

    for key in CARRIED:
        carried = given.get(key)
        if not isinstance(carried, str) or _is_absolute(carried):
            continue
        if f"/{(Path(carried).parts or ('',))[0]}" in RESULTS:
            raise InputError(
                f"{_label(name, key)} {carried}: {Path(carried).parts[0]}/ does not travel with a job; copy the file "
                "out of it, or give s3:// or an absolute path that all nodes share"
            )
        if not (working_dir / carried).is_file() and not (key == "space" and _is_shipped(carried, working_dir)):
            raise InputError(
                f"{_label(name, key)} {carried}: not in the working directory {working_dir}, so it cannot travel with "
                "the job; put it there, or give s3:// or an absolute path that all nodes share"
            )


def _is_shipped(space: str, working_dir: Path) -> bool:
    """Whether the job will find a tune space by this name: in the clone that travels, or in the installed package."""
    packed = shipped.spaces_folder().is_relative_to(shipped.PACKAGE)
    return (packed or (working_dir / "tune_spaces").is_dir()) and space in shipped.space_names()


def _flat(args: Any) -> dict[str, Any]:
    """Options by name, those of groups too."""
    found: dict[str, Any] = {}
    for each in dataclasses.fields(args):
        value = getattr(args, each.name)
        found |= _flat(value) if dataclasses.is_dataclass(value) else {each.name: value}
    return found


def _texts(value: Any) -> list[str]:
    """Places that an option names: none, one or several. An empty text is an option that was not given."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return [text for text in several if isinstance(text, str) and text]


def _is_absolute(value: str) -> bool:
    return uris.is_remote(value) or Path(value.removeprefix("file://")).is_absolute()


def _label(name: str, key: str) -> str:
    return "DEST" if (name, key) == ("prepare", "dest") else f"--{key}"


def run_job(command: Sequence[str]) -> int:
    """Run a command inside a job; returns its exit code: 2 when something given is wrong."""
    try:
        name, args = parse(command)
        check_places(name, args)
    except InputError as error:
        sys.stderr.write(f"edm-ray: {error}\n")
        return 2
    return cli.main(list(command))


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1:]))
