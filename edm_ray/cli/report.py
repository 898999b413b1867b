"""Rewrite a sweep's report.html from what its directory holds; nothing is sampled, no Ray is started.

A sweep that has not ended gets a report so far, which says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from edm_ray.cli.console import say
from edm_ray.report import by_budget
from edm_ray.report.html import summary
from edm_ray.report.saved import load_report, write_page
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args:
    sweep: Annotated[str, tyro.conf.Positional]
    """Directory or s3:// URI of a sweep (its --out)."""


def run(args: Args) -> None:
    out = uris.absolute(args.sweep)
    if by_budget.is_by_budget(out):
        results, missing, about = by_budget.load_by_budget(out)
        for line in by_budget.summary(results, missing, about):
            say(line)
        say(f"report: {by_budget.write_budgets_page(out, results, missing, about)}")
        return
    result, context = load_report(out)
    for line in summary(result, context):
        say(line)
    say(f"report: {write_page(out, result, context)}")
