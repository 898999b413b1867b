"""One command from its words to its exit code: options, errors as lines, and what happens when it is asked to end."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

from edm_ray.cli.boundary import check_places, machine_errors, one_line
from edm_ray.cli.commands import COMMANDS, module_name
from edm_ray.cli.console import as_json
from edm_ray.cli.examples import EXAMPLES
from edm_ray.cli.leaving import KEPT, Leaving, leave
from edm_ray.cli.progress import is_terminal, screen, showing
from edm_ray.errors import InputError, nearest
from edm_ray.execution.stopping import Interrupted, check, heard, is_command, nothing_begun, sigterm_waits, was_raised
from edm_ray.storage.s3 import StorageError


def run_command(name: str, arguments: Sequence[str], *, ends_process: bool) -> int:
    """Returns the exit code. ends_process: the process ends with the command, so signals may end it too."""
    leaving = Leaving(name)
    try:
        with as_json("--json" in arguments), heard(leaving), showing():
            code = run(name, arguments)
    except KeyboardInterrupt as interrupted:
        if is_command():
            raise  # the command around this one ends with it
        if not (isinstance(interrupted, Interrupted) and interrupted.said):
            sys.stderr.write(f"{leaving.stopped()}\n")
        code = interrupted.code if isinstance(interrupted, Interrupted) else 130
        if ends_process:
            leave(code)
    if ends_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: Ctrl-C while Python ends changes nothing
    return code


def run(name: str, arguments: Sequence[str]) -> int:
    """One command; returns its exit code."""
    try:
        if name not in COMMANDS:
            raise InputError(f"{name}: unknown command{nearest(name, COMMANDS)}; there are: {', '.join(COMMANDS)}")
        with machine_errors():
            module, args = parse(name, arguments)
            with screen().shown("reading the inputs"):
                check_places(name, args)
                code = module.run(args)
                check()
    except InputError as error:
        refuse_echo()
        sys.stderr.write(f"edm-ray: {one_line(str(error))}\n")
        return 2
    except StorageError as error:
        refuse_echo()
        sys.stderr.write(f"edm-ray: {one_line(str(error))}; what was written is kept, and the same command resumes\n")
        return 1
    except Exception:
        refuse_echo()
        raise
    return int(code or 0)


def refuse_echo() -> None:
    """Errors of a command that was interrupted are not for people: Interrupted is raised again."""
    if was_raised():
        check()


def parse(name: str, arguments: Sequence[str]) -> tuple[Any, Any]:
    """A command's module and its options; exits with code 2 for options that it does not have."""
    asks = any(word in ("-h", "--help") for word in arguments)
    if name in KEPT and "torch" not in sys.modules and not asks and not is_terminal(sys.stdout):
        sys.stderr.write(f"edm-ray {name}: loading PyTorch\n")
    # SIGTERM waits: threads that libraries start are to leave it to this one.
    with screen().shown("loading PyTorch"), sigterm_waits(), nothing_begun():
        module = importlib.import_module(module_name(name))
    import tyro

    # No --no-flag twin of every flag: plain `--dry-run`.
    flags = (tyro.conf.FlagCreatePairsOff,)
    try:
        args = tyro.cli(
            module.Args, prog=f"edm-ray {name}", args=list(arguments), description=module.__doc__, config=flags
        )
    except SystemExit as ended:
        if not ended.code:  # --help
            lines = "".join(f"  edm-ray {example}\n" for example in EXAMPLES.get(name, ()))
            sys.stdout.write(f"\nexamples:\n{lines}")
        raise
    return module, args
