"""List training presets for your own images (with --all the paper's too), or show every setting of one.

The paper's configurations are named DATASET-COLUMN-LETTER: column vp or ve of Table 2, letter a (Song's baseline) to f
(everything). Each takes images of any size that fits its network; the numbers are for the data set in its name."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from edm_ray.cli.console import Reports, report, say
from edm_ray.config.identity import differences, identity_fields
from edm_ray.config.load import to_flat, to_yaml
from edm_ray.config.presets import FOR_PEOPLE, PRESETS, Preset
from edm_ray.config.recipes import LETTERS
from edm_ray.errors import InputError, nearest
from edm_ray.networks.cost import network_cost
from edm_ray.training.cost import dollars, gpu_hours, memory_gib

WIDTH = 80


@dataclass(frozen=True)
class Args(Reports):
    name: Annotated[str | None, tyro.conf.Positional] = None
    """A preset to show in full."""
    all: bool = False
    """Also list the paper's configurations."""


def run(args: Args) -> None:
    if args.name is not None:
        if args.name not in PRESETS:
            raise InputError(f"{args.name}: unknown preset{nearest(args.name, PRESETS)}; `edm-ray presets` lists them")
        report({**_facts(args.name, PRESETS[args.name]), "config": to_flat(_config(PRESETS[args.name]))})
        _show(args.name)
        return
    listed = PRESETS if args.all else {name: PRESETS[name] for name in FOR_PEOPLE}
    rows = [_facts(name, entry) for name, entry in listed.items()]
    report({"presets": rows})
    say(f"{'preset':<19}{'parameters':>12}{'GMAC':>9}{'batch':>6}{'Mimg':>8}{'GPUs':>5}{'GiB/GPU':>8}{'GPU hours':>12}")
    for row in rows:
        time = "<1" if row["gpu_hours"] < 1 else f"{'' if row['published'] else '~'}{row['gpu_hours']:,.0f}"
        say(
            f"{row['name']:<19}{row['parameters']:>12,}{row['gmac']:>9.3f}{row['batch']:>6}{row['mimg']:>8,.4g}"
            f"{row['gpus']:>5}{row['gib_a_gpu']:>8,.1f}{time + ' ' + row['gpu']:>12}"
        )
        if not args.all:
            _wrapped(row["about"], "    ")
    say()
    notes = [
        "GMAC: multiply-adds of one forward pass of one image, 10^9 (computed). Mimg: length of the run.",
        "GPUs: the paper's (published: Table 7), 1 for small presets. GiB/GPU: each with its share of the batch at "
        "once (computed for fp32; 16-bit activations are assumed to take half).",
        "GPU hours: published for the paper's own runs; ~ assumed: the CIFAR-10 run scaled by multiply-adds.",
        "`edm-ray presets NAME` shows one with its sources; `edm-ray train --preset NAME --set a.b=c` changes it.",
    ]
    if not args.all:
        notes.append(f"`edm-ray presets --all` lists all {len(PRESETS)}: the paper's configurations A to F too.")
    for note in notes:
        _wrapped(note)


def _wrapped(text: str, indent: str = "") -> None:
    for line in textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False):
        say(line)


def _config(entry: Preset) -> Any:
    return entry.make(entry.example)


def _facts(name: str, entry: Preset) -> dict[str, Any]:
    config = _config(entry)
    cost = network_cost(config.denoiser, "cuda")
    hours = gpu_hours(name, config, cost)
    return {
        "name": name,
        "about": entry.about,
        "parameters": cost.parameters,
        "gmac": cost.forward_macs / 1e9,
        "batch": config.batch_size,
        "gpus": entry.gpus,
        "gib_a_gpu": memory_gib(cost, -(-config.batch_size // entry.gpus), config.precision).value,
        "mimg": config.total_kimg / 1000,
        "gpu_hours": hours.value,
        "gpu": hours.unit.split()[0],
        "published": hours.kind == "published",
    }


def _show(name: str) -> None:
    entry = PRESETS[name]
    config = _config(entry)
    cost = network_cost(config.denoiser, "cuda")
    hours = gpu_hours(name, config, cost)
    say(f"{name}: {entry.about}")
    shape = entry.example
    say(f"  for {shape.resolution}x{shape.resolution}x{shape.channels}, {shape.num_classes or 'no'} classes")
    say(f"  {cost.parameters:,} parameters, {cost.forward_macs / 1e9:.4g} GMAC an image forward (computed)")
    say(f"  memory   {memory_gib(cost, -(-config.batch_size // entry.gpus), config.precision)}")
    say(f"  time     {hours}")
    say(f"  money    {dollars(hours)}")
    stem, _, letter = name.rpartition("-")
    if letter in LETTERS[1:] and f"{stem}-{LETTERS[LETTERS.index(letter) - 1]}" in PRESETS:
        before = f"{stem}-{LETTERS[LETTERS.index(letter) - 1]}"
        old, new = (identity_fields(PRESETS[key].make(shape), "") for key in (before, name))
        say(f"  changes {before}:")
        for line in differences(old, new):
            say(f"    {line}")
    say()
    say(to_yaml(config).rstrip())
