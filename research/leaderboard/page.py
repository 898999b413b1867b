"""Writes the tables of README.md from the results beside it (json), and draws leaderboard.png.

python -m research.leaderboard.page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
PAGE, PICTURE = HERE / "README.md", HERE / "leaderboard.png"
MARKS = "<!-- made by research/leaderboard/page.py, {0}: begin -->", "<!-- {0}: end -->"
DRAWN = ("Heun", "DPM-Solver++(2M)", "DPM-Solver++(2M) SDE", "UniPC-2", "iPNDM-4", "SA-Solver")


def read(name: str) -> dict[str, Any]:
    path = HERE / name
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def leaderboard_tables(board: dict[str, Any]) -> str:
    parts = []
    for model, content in board.items():
        rows, budgets = content["rows"], sorted(content["rows"], key=int)
        names = list(dict.fromkeys(name for nfe in budgets for name in rows[nfe]["solvers"]))
        images = {nfe: rows[nfe]["images"] for nfe in budgets}
        told = f"{min(images.values()):,} images a point" if len(set(images.values())) == 1 else f"images: {images}"
        lines = [
            f"**{model}** ({content['about']}): {told}. FID; bold: the best, and those whose paired 95 % interval "
            "against it holds 0.",
            "",
            "| solver | " + " | ".join(budgets) + " |",
            "|---" * (len(budgets) + 1) + "|",
        ]
        for name in names:
            cells = [_cell(rows[nfe]["solvers"].get(name)) for nfe in budgets]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    fid, _, _, low, high = entry["values"]
    text = f"{fid:.2f}" if fid < 100 else f"{fid:.0f}"
    return f"**{text}**" if low <= 0 <= high else text


def search_tables(searches: dict[str, Any]) -> str:
    parts = []
    for model, variants in searches.items():
        lines = [
            f"**{model}** ({next(iter(variants.values()))['about']}):",
            "",
            "| budget (NFE) | found | FID +- standard error | n | against the best unsearched | against Heun, rho 7 "
            "| against the largest budget's | no trajectories | no refinement | neither |",
            "|---" * 10 + "|",
        ]
        others = {
            name: {row["budget"]: row for row in variants[name]["rows"]} if name in variants else {}
            for name in ("no trajectories", "no refinement", "neither")
        }
        for row in variants["all"]["rows"]:
            cells = [
                f"{row['budget']} ({row['nfe']})",
                row["sampler"],
                f"{row['fid']:.3f} +- {row['se']:.3f}",
                f"{row['n']:,}",
                _gap(row["against_unsearched"]),
                _gap(row["against_heun"]),
                _gap(row["against_largest"])
                + (", no worse" if row["no_worse"] and any(row["against_largest"] or ()) else ""),
                *(f"{other[row['budget']]['fid']:.3f}" if row["budget"] in other else "-" for other in others.values()),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _gap(gap: list[float] | None) -> str:
    if gap is None or not any(gap):
        return "the same sampler"
    return f"{gap[0]:+.3f} ({gap[1]:+.3f} to {gap[2]:+.3f})"


def replay_table(replays: dict[str, Any]) -> str:
    if not replays:
        return "Not run."
    about = replays["about"]
    lines = [
        f"{about['landscape']}. {about['nfe']} evaluations: the best known sampler has FID {about['best']:.4f} on "
        f"{about['truth_images']:,} fresh images; standard error of a difference: {about['paired_se']:.2%} of it.",
        "",
        "| strategy | replays | images, mean | mean regret | P(within 1 %) | P(within 2 %) | P(within 5 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in replays["strategies"].items():
        within = " | ".join(f"{each['within'][share]:.2f}" for share in ("0.01", "0.02", "0.05"))
        regret = f"{each['regret']:.2%} +- {each['regret_se']:.2%}"
        lines.append(f"| {name} | {each['replays']} | {each['images'] / 1e6:.2f} M | {regret} | {within} |")
    return "\n".join(lines)


LEVELS = {"rho 7": "rho 7", "gaussian": "a Gaussian's weights", "pixels": "pixels", "features": "features"}


def level_tables(levels: dict[str, Any]) -> str:
    if not levels:
        return "Not run."
    parts = []
    for model, content in levels.items():
        lines = [
            f"**{model}**: {content['images']:,} images a point. FID; in brackets the paired difference from rho 7 in "
            "standard errors.",
            "",
            f"| budget | solver | {' | '.join(LEVELS.values())} |",
            "|---" * (2 + len(LEVELS)) + "|",
        ]
        for nfe, solvers in content["budgets"].items():
            for solver, made in solvers.items():
                least = min(made[title][0] for title in LEVELS)
                cells = [_level_cell(made[title], made[title][0] == least) for title in LEVELS]
                lines.append(f"| {nfe} | {solver} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _level_cell(entry: list[float], best: bool) -> str:
    fid, gap, error = entry
    text = f"**{fid:.2f}**" if best else f"{fid:.2f}"
    return f"{text} ({gap / error:+.0f})" if error else text


def draw(board: dict[str, Any], searches: dict[str, Any]) -> None:
    """FID against evaluations, one panel a model."""
    figure = Figure(figsize=(4.2 * len(board), 3.6), layout="constrained")
    panels = figure.subplots(1, len(board), squeeze=False)[0]
    for axes, (model, content) in zip(panels, board.items(), strict=True):
        rows = content["rows"]
        for name in DRAWN:
            points = [
                (int(nfe), rows[nfe]["solvers"][name]["values"][0]) for nfe in rows if name in rows[nfe]["solvers"]
            ]
            points.sort()
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", ms=3, linewidth=1, label=name)
        if model in searches and "all" in searches[model]:
            found = [(row["budget"], row["fid"]) for row in searches[model]["all"]["rows"]]
            axes.plot([x for x, _ in found], [y for _, y in found], "k*-", ms=8, label="searched")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([5, 8, 18, 35, 79], ["5", "8", "18", "35", "79"])
        axes.minorticks_off()
        low, high = axes.get_ylim()
        shown = [value for value in (0.5, 1, 2, 3, 5, 10, 30, 100) if low <= value <= high]
        axes.set_yticks(shown, [f"{value:g}" for value in shown])
        axes.set_title(model, fontsize=10)
        axes.set_xlabel("network evaluations")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("FID")
    panels[0].legend(frameon=False, fontsize=7)
    figure.savefig(PICTURE, dpi=110)


def put(page: str, what: str, text: str) -> str:
    begin, end = (mark.format(what) for mark in MARKS)
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def main() -> None:
    board, searches, replays = read("leaderboard.json"), read("searches.json"), read("replays.json")
    page = PAGE.read_text()
    page = put(page, "leaderboard", leaderboard_tables(board))
    page = put(page, "searches", search_tables(searches))
    page = put(page, "replays", replay_table(replays))
    page = put(page, "levels", level_tables(read("levels.json")))
    PAGE.write_text(page)
    draw(board, searches)


if __name__ == "__main__":
    main()
