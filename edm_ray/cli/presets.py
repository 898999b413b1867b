"""List the training presets with what they cost, or show one: what it changes and every setting.

The paper's configurations are named DATASET-COLUMN-LETTER: column vp or ve of Table 2, letter a (Song's baseline) to f
(everything). Each takes images of any size that its network fits; the numbers are for the data it is named after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from edm_ray.cli.console import say
from edm_ray.config.identity import differences, identity_fields
from edm_ray.config.load import to_yaml
from edm_ray.config.presets import PRESETS
from edm_ray.config.recipes import LETTERS
from edm_ray.errors import InputError, nearest
from edm_ray.networks.cost import network_cost
from edm_ray.training.cost import dollars, gpu_hours, memory_gib


@dataclass(frozen=True)
class Args:
    name: Annotated[str | None, tyro.conf.Positional] = None
    """A preset to show in full."""


def run(args: Args) -> None:
    if args.name is not None:
        if args.name not in PRESETS:
            raise InputError(f"{args.name}: unknown preset{nearest(args.name, PRESETS)}; `edm-ray presets` lists them")
        _show(args.name)
        return
    head = f"{'preset':<20}{'parameters':>12}{'GMAC':>9}{'batch':>7}{'GPUs':>6}{'GiB/GPU':>9}"
    say(f"{head}{'Mimg':>8}{'GPU hours':>12}  what")
    for name, entry in PRESETS.items():
        config = entry.make(entry.example)
        cost = network_cost(config.denoiser, "cuda")
        hours = gpu_hours(name, config, cost)
        memory = memory_gib(cost, -(-config.batch_size // entry.gpus), config.precision).value
        time = "<1" if hours.value < 1 else f"{'' if hours.kind == 'published' else '~'}{hours.value:,.0f}"
        say(
            f"{name:<20}{cost.parameters:>12,}{cost.forward_macs / 1e9:>9.3f}{config.batch_size:>7}"
            f"{entry.gpus:>6}{memory:>9,.1f}"
            f"{config.total_kimg / 1000:>8,.4g}{time + ' ' + hours.unit.split()[0]:>12}  {entry.about}"
        )
    say()
    say("GMAC: multiply-adds of one forward pass of one image, 10^9 (computed). Mimg: length of the run.")
    say(
        "GPUs: the paper's (published: Table 7), 1 for small presets. GiB/GPU: each with its share of the batch at once"
    )
    say("(computed for fp32; 16-bit activations are assumed to take half).")
    say("GPU hours: published for the paper's own runs; ~ assumed: the CIFAR-10 run scaled by multiply-adds.")
    say("`edm-ray presets NAME` shows one with its sources; `edm-ray train --preset NAME --set a.b=c` changes it.")


def _show(name: str) -> None:
    entry = PRESETS[name]
    config = entry.make(entry.example)
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
