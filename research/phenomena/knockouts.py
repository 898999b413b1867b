"""Table 4 and figure 5b of the paper on the landscapes of research/race: tens of thousands of images a sampler.

    python -m research.phenomena.knockouts CACHE --images 112000 [--landscape crops] [--write]

The best sampler of a grid is chosen on one half of the images; it, what is left of it when parts are taken out, and
churn alone are compared on the other half, on the same seeds. ``--write`` puts the table into README.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edm_ray.diffusion.samplers import sampler
from research.phenomena.digits import paired, plus_minus, put
from research.race.landscape import SPECS, build
from research.race.replay import GROUPS, Ground


def rows_of(ground: Ground) -> dict[str, int]:
    """Title -> row: the best of the search half and its knock-outs, all on the grid."""
    spec, (search, _) = ground.landscape.spec, ground.halves(0)
    values = [ground.estimate(row, search).debiased for row in range(len(ground.packed))]
    best = ground.landscape.settings[values.index(min(values))]
    wide = {"s_tmin": spec.s_tmin[0], "s_tmax": spec.s_tmax[-1]}

    def row(**changes: float) -> int:
        fields = {name: getattr(best, name) for name in ("num_steps", "s_churn", "s_tmin", "s_tmax", "s_noise")}
        return ground.landscape.settings.index(sampler(**{**fields, **changes}))

    plain = spec.s_noise[-1]
    found = {"deterministic": 0}
    if plain == 1.0:
        found["no S_tmin, S_tmax; S_noise = 1"] = row(**wide, s_noise=1.0)
        found["S_noise = 1"] = row(s_noise=1.0)
    found["no S_tmin, S_tmax"] = row(**wide)
    for share in spec.churn:
        if share * best.churn_cap != best.s_churn:
            found[f"S_churn {share:g} of its cap"] = row(s_churn=share * best.churn_cap)
    title = f"all of them: S_churn {best.s_churn:.3g} ({best.s_churn / best.churn_cap:.2g} of its cap), S_tmin "
    return {**found, f"{title}{best.s_tmin:g}, S_tmax {best.s_tmax:g}, S_noise {best.s_noise:g}": row()}


def table(ground: Ground) -> str:
    truth = ground.halves(0)[1]
    found = {title: ground.estimate(row, truth) for title, row in rows_of(ground).items()}
    best, plain = list(found.values())[-1], found["deterministic"]
    lines = [
        "| sampler, 8 steps | FID | against deterministic, paired | against all of them, paired |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {title} | {plus_minus(each)} | {paired(each, plain)} | {paired(each, best)} |"
        for title, each in found.items()
    ]
    return f"n = {best.n:,}, intervals over {GROUPS} groups of seeds.\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--landscape", default="crops", choices=list(SPECS))
    parser.add_argument("--images", type=int, default=112_000)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    text = table(Ground(build(SPECS[args.landscape], args.cache, args.images)))
    print(text)
    if args.write:
        put(f"knock-outs on {args.landscape}", text)


if __name__ == "__main__":
    main()
