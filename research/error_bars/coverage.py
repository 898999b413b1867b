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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from research.error_bars.influence import Influence, Jackknife, Target
from research.error_bars.pool import CLOSE, FAR, FIRST, Population, demo, landscape, real, wide

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
NARROW, WIDE = (300, 1000, 3000, 10_000), (200, 1000, 3000)
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
    errors = [ten.se, thirty.se, influence.se, influence.grouped_se(min(100, len(influence.first))), influence.corrected_se]
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
    rng, result = np.random.default_rng(0), {}
    for d in (64, 512, 2048):
        x = rng.normal(size=(4000, d)) * 1.1
        target = Target.of(np.zeros(d), np.eye(d))
        took = {}
        covariance = np.cov(x.T)
        for name, work in {
            "one FID": lambda: target.fids(x.mean(axis=0)[None], covariance[None]),
            "influence and second order": lambda: Influence.of(x, target),
        }.items():
            began = time.perf_counter()
            work()
            took[name] = time.perf_counter() - began
        took["jackknife, 10 groups"] = 11 * took["one FID"]
        took["jackknife, 30 groups"] = 31 * took["one FID"]
        result[str(d)] = took
        print(d, took, flush=True)
    return result


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
    lines = []
    for title in found["truth"]:
        each = found[title]
        off = {name: (round(b["off"], 4), round(b["spread"], 4)) for name, b in each["debiased"].items()}
        lines.append(f"  {title}: truth {found['truth'][title]:.4f} mean {each['mean']:.4f} spread {each['spread']:.4f} off {off}")
        for method, m in each["methods"].items():
            shares = " ".join(f"{share:.3f}" for share in m["debiased"].values())
            lines.append(
                f"    {method:24s} plain {m['plain']:.3f} debiased {shares} rms se {m['error']:.4f} unsteady {m['unsteady']:.3f} width {m['width']:.4f}"
            )
        if "control" in each:
            lines.append(f"    control {each['control']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
