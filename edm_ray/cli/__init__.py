"""The command line, and the only implementation of the commands: `jobs/*.py` and the demo call `main` too."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

from edm_ray.cli.boundary import check_places, machine_errors, one_line
from edm_ray.cli.console import as_json
from edm_ray.cli.examples import EXAMPLES
from edm_ray.cli.leaving import KEPT, Leaving, leave
from edm_ray.cli.progress import is_terminal, screen, showing
from edm_ray.errors import InputError, nearest
from edm_ray.execution.stopping import Interrupted, check, heard, is_command, nothing_begun, sigterm_waits, was_raised
from edm_ray.storage.s3 import StorageError

# Command -> what it is for. Modules are imported when asked for: torch and Ray take seconds.
COMMANDS = {
    "demo": "do the whole job on handwritten digits: prepare, train, generate, evaluate, sweep, report",
    "prepare": "turn pictures (folder, zip, CIFAR, MNIST, Parquet, tar, npz) into sharded Parquet with a manifest",
    "inspect": "describe and check a data set: counts, statistics, checksums, a grid of pictures",
    "train": "train a denoiser; the same command resumes",
    "ema": "average a finished run's parameters over another width",
    "reference": "make the FID reference of a data set",
    "weights": "list and download the published weights of feature extractors",
    "generate": "sample images from a model into a grid or a folder",
    "evaluate": "measure the FID of a model with one sampler, with error bars",
    "sweep": "find the best sampler for a model, as Ray Tune trials",
    "export": "make a model from an unfinished run, or a diffusers-style folder",
    "fid": "measure the FID between two sets of images",
    "export-sampler": "write a sampler for diffusers or ComfyUI, or as plain numbers",
    "report": "write the report of a sweep again, also of an unfinished one",
    "submit": "run any of these as a job on a Ray cluster",
    "doctor": "check a machine or cluster, and say how to fix it",
    "import": "turn an official network file into a model, without executing it",
    "presets": "list the training presets, with what they cost",
    "explain": "draw the design space: schedules, trajectories, weights, truncation error",
    "completion": "print a script that completes commands and options in your shell",
}


def usage() -> str:
    rows = "\n".join(f"  {name:<14} {text}" for name, text in COMMANDS.items())
    return f"usage: edm-ray COMMAND [OPTIONS]\n\n{rows}\n\n`edm-ray COMMAND --help` shows a command's options.\n"


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
    name = arguments[0]
    leaving = Leaving(name)
    try:
        with as_json("--json" in arguments), heard(leaving), showing():
            code = run(name, arguments[1:])
    except KeyboardInterrupt as interrupted:
        if is_command():
            raise  # the command around this one ends with it
        if not (isinstance(interrupted, Interrupted) and interrupted.said):
            sys.stderr.write(f"{leaving.stopped()}\n")
        code = interrupted.code if isinstance(interrupted, Interrupted) else 130
        if argv is None:
            leave(code)
    if argv is None:
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


def module_name(command: str) -> str:
    """ "import" is a keyword of Python, and cannot be the name of a module; nor can a name with a hyphen."""
    return f"edm_ray.cli.{'import_' if command == 'import' else command.replace('-', '_')}"


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
