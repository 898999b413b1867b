"""Write a sweep's report.html again from the files in its directory, without sampling or starting Ray.

For an unfinished sweep, it reports the results so far, and says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from edm_ray.cli.console import Reports, report, say
from edm_ray.report import by_budget
from edm_ray.report.html import summary
from edm_ray.report.saved import load_report, write_page
from edm_ray.search.result import SweepResult
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args(Reports):
    sweep: Annotated[str, tyro.conf.Positional]
    """Directory or s3:// URI of a sweep (its --out)."""


def run(args: Args) -> None:
    out = uris.absolute(args.sweep)
    if by_budget.is_by_budget(out):
        results, missing, about = by_budget.load_by_budget(out)
        for line in by_budget.summary(results, missing, about):
            say(line)
        page = by_budget.write_budgets_page(out, results, missing, about)
        found = {str(each.nfe): _facts(each) for each in results}
        report({"report": page, "unfinished": about.unfinished, "missing": missing, "budgets": found})
        say(f"report: {page}")
        return
    result, context = load_report(out)
    for line in summary(result, context):
        say(line)
    page = write_page(out, result, context)
    report({"report": page, "unfinished": context.unfinished, **_facts(result)})
    say(f"report: {page}")


def _facts(result: SweepResult) -> dict[str, Any]:
    """The recommended sampler and its FID; None where no sampler was found yet."""
    best = result.of(result.best)
    if best is None:
        return {"best": None, "images": result.images}
    fid = {"fid": best.estimate.fid, "se": best.estimate.se, "n": best.estimate.n}
    return {"best": best.settings.to_dict(), **fid, "images": result.images}
