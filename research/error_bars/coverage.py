"""Do 95 % intervals hold the truth in 95 % of redraws? Ten-group jackknife, thirty groups, and influence functions.

    python -m research.error_bars.coverage CACHE [--demo DEMO] [--only PART] [--redraws 1000]   (40 minutes on one core)
    python -m research.error_bars.coverage

A population is the features of many images; a redraw takes n of them with replacement, the same for all samplers. So
the truth is known exactly: the FID of the population. DEMO is the folder of `edm-ray demo`. Results go to results.json;
without a folder the tables of README.md are written from it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from edm_ray.evaluation.fid import FidReference
from edm_ray.evaluation.influence import Influence as ProductInfluence
from edm_ray.evaluation.moments import Moments
from research.error_bars.influence import Influence, Jackknife, Target
from research.error_bars.pool import CLOSE, FAR, FIRST, Population, demo, landscape, real, wide

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
NARROW, WIDE = (300, 1000, 3000, 10_000), (200, 1000)
PAIRS = {"paired, close": CLOSE, "paired, far": FAR}
METHODS = {
    "jackknife, 10 groups": 9,
    "jackknife, 30 groups": 29,
    "influence": math.inf,
    "influence, 100 groups": 99,
    "influence, corrected": math.inf,
}
"""Degrees of freedom of the t that widens each."""
GROUPS = (10, 30, 5)
"""Of jackknives; the last for the bias alone."""
DEBIASED = ("jackknife, 10 groups", "jackknife, 30 groups", "jackknife, 5 groups", "second order")
PARTS = ("digits", "crops", "real", "demo", "wide")


def redraw(x: dict[str, np.ndarray], target: Target) -> dict[str, dict[str, Any]]:
    """Quantity -> its value, and by each method its bias and its standard error."""
    jackknife = {k: {name: Jackknife.of(rows, target, k) for name, rows in x.items()} for k in GROUPS}
    influence = {name: Influence.of(rows, target) for name, rows in x.items()}
    found = {"FID": _told([jackknife[k][FIRST] for k in GROUPS], influence[FIRST])}
    for title, other in PAIRS.items():
        if other in x:
            groups = [jackknife[k][FIRST] - jackknife[k][other] for k in GROUPS]
            found[title] = _told(groups, influence[FIRST] - influence[other])
            a, b = influence[FIRST].first, influence[other].first
            found[title] |= {"slope": float(a @ b / (b @ b)), "correlation": float(np.corrcoef(a, b)[0, 1])}
    return found


def _told(jackknife: list[Jackknife], influence: Influence) -> dict[str, Any]:
    ten, thirty, five = jackknife
    errors = [
        ten.se,
        thirty.se,
        influence.se,
        influence.grouped_se(min(100, len(influence.first))),
        influence.corrected_se,
    ]
    return {
        "value": ten.fid,
        "se": dict(zip(METHODS, errors)),
        "bias": dict(zip(DEBIASED, [ten.bias, thirty.bias, five.bias, influence.bias])),
    }


def case(population: Population, n: int, redraws: int) -> dict[str, Any]:
    """Coverage, width and steadiness of every method at one n."""
    size = len(population.features[FIRST])
    truths = {name: population_fid(rows, population.target) for name, rows in population.features.items()}
    truth = {"FID": truths[FIRST]}
    truth |= {title: truths[FIRST] - truths[other] for title, other in PAIRS.items() if other in truths}
    found = []
    for number in range(redraws):
        rows = np.random.default_rng([n, number]).integers(0, size, n)
        x = {name: each[rows].astype(np.float64) for name, each in population.features.items()}
        found.append(redraw(x, population.target))
    result: dict[str, Any] = {"about": population.about, "n": n, "redraws": redraws, "truth": truth}
    for title, true in truth.items():
        result[title] = summary([each[title] for each in found], true)
        if title in PAIRS:
            result[title]["control"] = control(found, title, truths[PAIRS[title]], truth["FID"])
    return result


def population_fid(features: np.ndarray, target: Target) -> float:
    """Of all of them, as a population: divided by N."""
    x = features.astype(np.float64)
    mean = x.mean(axis=0)
    return float(target.fids(mean[None], ((x.T @ x) / len(x) - np.outer(mean, mean))[None])[0])


def summary(found: list[dict[str, Any]], truth: float) -> dict[str, Any]:
    values = np.array([each["value"] for each in found])
    result: dict[str, Any] = {"mean": values.mean(), "spread": values.std(ddof=1), "methods": {}, "debiased": {}}
    biases = {name: np.array([each["bias"][name] for each in found]) for name in DEBIASED}
    for name, each in biases.items():
        left = values - each
        result["debiased"][name] = {"off": left.mean() - truth, "spread": left.std(ddof=1)}
    for method, freedom in METHODS.items():
        se = np.array([each["se"][method] for each in found])
        t = float(student.ppf(0.975, freedom))
        result["methods"][method] = {
            "plain": float((np.abs(values - values.mean()) <= t * se).mean()),
            "debiased": {
                name: float((np.abs(values - each - truth) <= t * se).mean()) for name, each in biases.items()
            },
            "width": 2 * t * float(se.mean()),
            "error": math.sqrt(float((se**2).mean())),
            "unsteady": float(se.std(ddof=1) / se.mean()),
        }
    return result


def control(found: list[dict[str, Any]], title: str, known: float, truth: float) -> dict[str, Any]:
    """Spread of the debiased FID with the pair's other sampler as a control variate, whose FID is known."""

    def debiased(name: str) -> np.ndarray:
        return np.array([each[name]["value"] - each[name]["bias"][DEBIASED[0]] for each in found])

    values, slopes = debiased("FID"), np.array([each[title]["slope"] for each in found])
    corrected = values - slopes * (values - debiased(title) - known)
    return {
        "correlation": float(np.mean([each[title]["correlation"] for each in found])),
        "slope": float(slopes.mean()),
        "spread": float(values.std(ddof=1)),
        "spread_controlled": float(corrected.std(ddof=1)),
        "off": float(corrected.mean() - truth),
    }


def costs() -> dict[str, Any]:
    """Seconds for one estimate of 4,000 images on one thread, after the sums that all need."""
    return {str(d): _costs(d) for d in (64, 512, 2048)}


def _costs(d: int) -> dict[str, float]:
    features = np.rint(np.random.default_rng(0).normal(size=(4000, d)) * 1.1 * 2**14).astype(np.int32)
    real = np.rint(np.random.default_rng(1).normal(size=(3000, d)) * 2**14).astype(np.int32)
    moments, reference = Moments.of(features, "x", 14), FidReference(Moments.of(real, "x", 14))
    x = features / 2.0**14
    target = Target(reference.mean, reference.root, reference.trace)

    def seconds(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    one = seconds(lambda: reference.distance(moments))
    return {
        "one FID": one,
        "jackknife, 10 groups": 11 * one,
        "jackknife, 30 groups": 31 * one,
        "influence": seconds(lambda: ProductInfluence(moments, reference, 2**17).of(features)),
        "influence and second order": seconds(lambda: Influence.of(x, target)),
    }


def population(part: str, cache: Path, folder: str | None) -> Population:
    if part == "demo":
        assert folder is not None, "give --demo"
        return demo(cache, folder)
    return {"real": real, "wide": wide}.get(part, lambda cache: landscape(part, cache))(cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", nargs="?", type=Path)
    parser.add_argument("--demo", help="its folder; without it that part is left out")
    parser.add_argument("--only", nargs="+", default=[*PARTS, "costs"])
    parser.add_argument("--redraws", type=int, default=1000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.cache is None:
        write_page(json.loads(args.results.read_text()))
        return
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)

    def keep(name: str, content: Any) -> None:
        before = json.loads(args.results.read_text()) if args.results.exists() else {}
        args.results.write_text(json.dumps({**before, name: content}, indent=1) + "\n")

    if "costs" in args.only:
        keep("costs", costs())
    for part in [part for part in PARTS if part in args.only and (part != "demo" or args.demo)]:
        drawn = population(part, args.cache, args.demo)
        for n in WIDE if part == "wide" else NARROW:
            began = time.perf_counter()
            found = case(drawn, n, args.redraws)
            keep(f"{part}, n = {n}", found)
            print(f"{part}, n = {n}: {time.perf_counter() - began:.0f} s", flush=True)
            print(brief(found), flush=True)


def brief(found: dict[str, Any]) -> str:
    return "\n".join([*coverage_rows("", found), *bias_rows("", found)])


def coverage_rows(name: str, found: dict[str, Any]) -> list[str]:
    """Coverage of the truth by debiased intervals, error over true spread, width over the first method's, spread of
    the error: a line a quantity."""
    lines = []
    for title in found["truth"]:
        each = found[title]
        spread = each["debiased"][DEBIASED[0]]["spread"]
        first = each["methods"]["jackknife, 10 groups"]["width"]
        cells = [
            f"**{100 * m['debiased'][DEBIASED[0]]:.1f}** / {m['error'] / spread:.2f} / {m['width'] / first:.2f} / "
            f"{100 * m['unsteady']:.0f}"
            for m in each["methods"].values()
        ]
        lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
    return lines


def bias_rows(name: str, found: dict[str, Any]) -> list[str]:
    lines = []
    for title, truth in found["truth"].items():
        each = found[title]
        plain = f"{each['mean'] - truth:+.4f} ({each['spread']:.4f})"
        cells = [f"{b['off']:+.4f} ({b['spread']:.4f})" for b in each["debiased"].values()]
        lines.append(f"| {name} | {title} | {truth:.4f} | {plain} | {' | '.join(cells)} |")
    return lines


def control_rows(name: str, found: dict[str, Any]) -> list[str]:
    told = [(title, found[title]["control"]) for title in PAIRS if title in found]
    cells = [(c["correlation"], c["spread"], c["spread_controlled"], c["off"]) for _, c in told]
    return [
        f"| {name} | {title} | {each[0]:.3f} | {each[1]:.4f} | {each[2]:.4f} | {each[3]:+.4f} |"
        for (title, _), each in zip(told, cells)
    ]


def table(columns: list[str], rows: list[str]) -> str:
    return "\n".join(["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *rows])


def write_page(results: dict[str, Any]) -> None:
    cases = {name: each for name, each in results.items() if name != "costs"}
    of = {
        "coverage": table(
            ["population", "what", *METHODS], [row for each in cases.items() for row in coverage_rows(*each)]
        ),
        "bias": table(
            ["population", "what", "truth", "plain", *DEBIASED],
            [row for each in cases.items() for row in bias_rows(*each)],
        ),
        "control": table(
            ["population", "control", "correlation", "spread alone", "with the control", "off by"],
            [row for each in cases.items() for row in control_rows(*each)],
        ),
        "costs": table(
            ["d", *next(iter(results["costs"].values()))],
            [f"| {d} | {' | '.join(f'{s:.3g}' for s in took.values())} |" for d, took in results["costs"].items()],
        ),
    }
    page = HERE / "README.md"
    for name, text in of.items():
        head, rest = page.read_text().split(f"<!-- {name} -->\n", 1)
        page.write_text(f"{head}<!-- {name} -->\n{text}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}")


if __name__ == "__main__":
    main()
