"""Solvers at their defaults (rho 7), at nine budgets of network evaluations, on four small models.

    python -m research.leaderboard.leaderboard CACHE [--demo DEMO] [--models digits other-net crops "digits U-Net"]

10,000 images a point, the same seeds for all, so differences are paired. Results go to leaderboard.json;
`python -m research.leaderboard.page` writes them into README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.errors import InputError
from edm_ray.search.budget_space import fitted
from edm_ray.search.statistics import difference
from research.leaderboard.judge import Judge, judges
from research.race.landscape import SPECS

HERE = Path(__file__).parent
RESULTS = HERE / "leaderboard.json"
BUDGETS = (5, 6, 8, 10, 14, 18, 25, 35, 79)
IMAGES = 10_000
SOLVERS: dict[str, dict[str, Any]] = {
    "Heun": {"solver": "heun"},
    "Euler": {"solver": "euler"},
    "DPM-Solver-2": {"solver": "dpm_2"},
    "DPM-Solver++(2M)": {"solver": "dpmpp_2m"},
    "DPM-Solver++(3M)": {"solver": "dpmpp_3m"},
    "UniPC-2": {"solver": "unipc", "order": 2},
    "UniPC-3": {"solver": "unipc", "order": 3},
    "iPNDM-4": {"solver": "ipndm", "order": 4},
    "DEIS-3": {"solver": "deis", "order": 3},
    "DPM-Solver++(2M) SDE": {"solver": "dpmpp_2m_sde"},
    "DPM-Solver++(3M) SDE": {"solver": "dpmpp_3m_sde"},
    "SA-Solver": {"solver": "sa_solver"},
}


def at(flat: dict[str, Any], nfe: int) -> Sampler | None:
    """The solver with as many steps as the budget pays for; None where it pays for too few."""
    name, changes = flat["solver"], {key: value for key, value in flat.items() if key != "solver"}
    try:
        return fitted(lambda count: sampler(name, **changes, num_steps=count), nfe)
    except InputError:
        return None


def row_of(judge: Judge, nfe: int, images: int) -> dict[str, Any]:
    """Solver -> [FID, standard error, evaluations, gap to the best, its 95 % interval]."""
    made = {name: each for name, flat in SOLVERS.items() if (each := at(flat, nfe)) is not None}
    found = {name: judge.estimate(each, "evaluate", images) for name, each in made.items()}
    best = min(found, key=lambda name: found[name].debiased)
    row: dict[str, Any] = {}
    for name, estimate in found.items():
        gap = difference(estimate, found[best])
        told = [0.0, 0.0, 0.0] if name == best else [gap.gap, gap.low, gap.high]
        values = [estimate.fid, estimate.se, *told]
        row[name] = {"nfe": made[name].nfe, "values": [round(value, 4) for value in values]}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--demo")
    parser.add_argument("--models", nargs="+", default=[*SPECS])
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--images", type=int, default=IMAGES)
    args = parser.parse_args()
    for judge in judges(args.models, args.cache, args.demo):
        for nfe in args.budgets:
            row = row_of(judge, nfe, args.images)
            kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            model = kept.setdefault(judge.judged.name, {"about": judge.judged.about, "rows": {}})
            model["rows"][str(nfe)] = {"images": args.images, "solvers": row}
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
            best = min(row, key=lambda name: row[name]["values"][0])
            print(f"{judge.judged.name}, {nfe} evaluations: {best} {row[best]['values'][0]:.3f}", flush=True)


if __name__ == "__main__":
    main()
