"""The names of the commands, what each is for, and the module that each lives in."""

from __future__ import annotations

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


def module_name(command: str) -> str:
    """ "import" is a keyword of Python, and cannot be the name of a module; nor can a name with a hyphen."""
    return f"edm_ray.cli.{'import_' if command == 'import' else command.replace('-', '_')}"
