"""How often does the winner of a search by one metric lose by another, beyond its interval?

    python -m research.second_metric.guard CACHE [--sets digits crops] [--write]

120 samplers of `tune_spaces/any-budget.yaml` at 8 network evaluations, drawn at random, and every solver at its
defaults make images of a small denoiser (that of the landscapes in research/race), 5,000 of search seeds and 10,000 of
fresh ones. Three extractors look at each image. A replay draws 30 of the samplers; the first metric chooses among them
and the defaults by search seeds; the winner, the runner-up, the best default and Heun are confirmed on the fresh seeds,
where the second metric is asked as `sweep --second-reference` asks it. The digits took 11 minutes on a busy core. A
run that was stopped resumes. ``--write`` puts the tables into README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edm_ray.diffusion.preconditioning import EDM
from edm_ray.diffusion.samplers import Sampler
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.generation.generate import generate
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.search.budget_space import BudgetSpace, at_budget
from edm_ray.search.space import load_space
from edm_ray.search.statistics import difference
from edm_ray.seeding import stream_key, uniform
from research.leaderboard.search import SPACE
from research.race.landscape import SPECS, Net, load_data, train_denoiser, train_features
from research.race.packed import Packed
from research.self_features.ranks import Features, own, put, residual

PAGE = Path(__file__).with_name("README.md")
SETS = {"digits": "8x8 digits", "crops": "16x16 crops of two photographs"}
EXTRACTORS = {"perceptron": "a perceptron, whitened", "residual": "a residual network", "self": "`--extractor self`"}
NFE, SAMPLERS, DRAWN, REPLAYS = 8, 120, 30, 2000
GROUPS = 20
"""Of seeds, of each pool."""
POOLS = {"search": (0, 5_000), "fresh": (1 << 20, 10_000)}
"""First seed and number."""
BATCH = 500


@dataclass(frozen=True)
class Looked:
    """All samplers by one extractor: label -> estimate, on either pool."""

    search: dict[str, FidEstimate]
    fresh: dict[str, FidEstimate]


def samplers(space: BudgetSpace) -> dict[str, Sampler]:
    """Those drawn, by number, after the defaults of the solvers, by name."""
    drawn: list[Sampler] = []
    for row in uniform(stream_key("second metric"), torch.arange(4 * SAMPLERS), len(space.search)).tolist():
        with contextlib.suppress(InputError):  # a solver that has not this order
            drawn.append(space.settings(space.at(row)))
    assert len(drawn) >= SAMPLERS
    numbered = {str(number): each for number, each in enumerate(drawn[:SAMPLERS])}
    return {**{name: space.starts[name] for name in space.unsearched}, **numbered}


class Bench:
    """One picture set: its denoiser and extractors, made when they are first needed."""

    def __init__(self, name: str, cache: Path) -> None:
        self.name, self.folder = name, cache / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scaled, self.labels, _ = load_data(SPECS[name].data)
        self.real = ((self.scaled + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    @functools.cached_property
    def model(self) -> ModelDenoiser:
        denoiser: EDM = train_denoiser(SPECS[self.name], self.scaled)
        assert isinstance(denoiser.model, Net)
        return ModelDenoiser(denoiser, denoiser.model)

    @functools.cached_property
    def extractors(self) -> dict[str, Callable[[torch.Tensor], np.ndarray]]:
        """uint8 [B, 1, S, S] -> float64 [B, d]."""
        flat = train_features(SPECS[self.name], self.scaled, self.labels)[0]
        made: dict[str, Features] = {
            "perceptron": lambda x: flat(x.flatten(1).float() / 127.5 - 1),
            "residual": residual(self.real, self.labels),
            "self": own(self.real, self.labels, int(self.labels.max()) + 1, self.folder / "self"),
        }

        def taken(features: Features, images: torch.Tensor) -> np.ndarray:
            with torch.inference_mode():
                return torch.cat([features(part) for part in images.split(BATCH)]).double().numpy()

        return {name: functools.partial(taken, each) for name, each in made.items()}

    @functools.cached_property
    def packed(self) -> dict[str, Packed]:
        made = {}
        for name, extract in self.extractors.items():
            features = extract(self.real)
            made[name] = Packed(features.mean(0), np.cov(features.T))
        return made

    def sums(self, label: str, sampler: Sampler, pool: str) -> dict[str, np.ndarray]:
        """By extractor: sums over the images of each group."""
        path = self.folder / f"{label}-{pool}.npz"
        if not path.exists():
            first, count = POOLS[pool]
            images = generate(self.model, torch.arange(first, first + count), sampler, micro_batch=BATCH)
            made = {}
            for name, extract in self.extractors.items():
                features = extract(images)
                made[name] = np.stack([self.packed[name].pack(features[group::GROUPS]) for group in range(GROUPS)])
            part = path.with_suffix(".part.npz")
            np.savez(part, **made)
            part.rename(path)
        with np.load(path) as stored:
            return {name: stored[name] for name in EXTRACTORS}

    def look(self) -> tuple[dict[str, Looked], BudgetSpace]:
        """At all samplers, by every extractor."""
        space = at_budget(load_space(str(SPACE)), NFE)
        found = {name: Looked({}, {}) for name in EXTRACTORS}
        for number, (label, sampler) in enumerate(samplers(space).items()):
            for pool, (_, count) in POOLS.items():
                counts = np.full(GROUPS, count // GROUPS)
                for name, sums in self.sums(label, sampler, pool).items():
                    estimate = self.packed[name].estimate(sums, counts, self.name, name)
                    getattr(found[name], pool)[label] = estimate
            if number % 10 == 9:
                print(f"{self.name}: {number + 1} samplers", flush=True)
        return found, space


@dataclass(frozen=True)
class Verdict:
    """Shares of the replays."""

    worse: float
    """The metric finds another confirmed sampler better than the winner, beyond the paired 95 % interval."""
    than_runner_up: float
    """The runner-up, that is."""
    regret: float
    """Median of how much higher the winner's FID is than that of the best of the replay's samplers, by the metric."""


def replayed(first: Looked, second: Looked, defaults: tuple[str, ...], heun: str) -> Verdict:
    """Searches by the first metric, judged by the second (or by the first itself, on fresh seeds)."""
    rivals, beaten, regrets = [], [], []
    for replay in range(REPLAYS):
        order = torch.argsort(uniform(stream_key("replays", replay), torch.arange(SAMPLERS), 1)[:, 0])
        labels = [*defaults, *(str(number) for number in order[:DRAWN].tolist())]
        ranked = sorted(labels, key=lambda label: first.search[label].debiased)
        plain = min(defaults, key=lambda label: first.search[label].debiased)
        winner, runner_up = ranked[:2]
        others = {runner_up, plain, heun} - {winner}
        gaps = {other: difference(second.fresh[winner], second.fresh[other]) for other in others}
        rivals.append(any(gap.low > 0 for gap in gaps.values()))
        beaten.append(gaps[runner_up].low > 0)
        best = min(second.fresh[label].debiased for label in labels)
        regrets.append(second.fresh[winner].debiased / best - 1)
    return Verdict(float(np.mean(rivals)), float(np.mean(beaten)), float(np.median(regrets)))


def table(found: dict[str, Looked], space: BudgetSpace) -> str:
    defaults = space.unsearched
    heun = next(name for name in defaults if space.starts[name].solver == "heun")
    lines = [
        "| search by | judged by | another confirmed sampler is better | the runner-up is better | median regret |",
        "|---|---|---|---|---|",
    ]
    for first in EXTRACTORS:
        for second in EXTRACTORS:
            each = replayed(found[first], found[second], defaults, heun)
            judge = "the same, fresh seeds" if first == second else EXTRACTORS[second]
            cells = f"{each.worse:.1%} | {each.than_runner_up:.1%} | {each.regret:.1%}"
            lines.append(f"| {EXTRACTORS[first]} | {judge} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name in args.sets:
        text = table(*Bench(name, args.cache).look())
        print(f"\n{SETS[name]}\n{text}")
        if args.write:
            put(PAGE, name, text)


if __name__ == "__main__":
    main()
