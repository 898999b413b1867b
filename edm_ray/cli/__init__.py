"""The command line, and the only implementation of the commands: `jobs/*.py` and the demo call `main` too."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edm_ray.cli.commands import COMMANDS as COMMANDS
from edm_ray.cli.commands import module_name as module_name
from edm_ray.cli.commands import usage


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 something given is wrong, 1 storage is away (one line on
    stderr says what), or the command's own (`submit`: the job's; `doctor`: 1 when something is wrong)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from edm_ray.version import __version__

        sys.stdout.write(f"edm-ray {__version__}\n")
        return 0
    from edm_ray.cli.command import run_command  # --help need not wait for what it imports

    return run_command(arguments[0], arguments[1:], ends_process=argv is None)
