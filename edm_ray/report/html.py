"""The report of a sweep: one HTML file that needs nothing else, online or off."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from edm_ray.evaluation.fid import interval_95
from edm_ray.report.figures import drawings
from edm_ray.search.result import SweepResult
from edm_ray.search.space import IN_PAPER
from edm_ray.search.statistics import gap_in_words


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the page says beside the result itself."""

    title: str
    reference: str
    """The reference and extractor, in words."""
    grids: dict[str, bytes] = field(default_factory=dict)
    """Caption -> PNG; the same seeds in each."""
    real: dict[str, str] | None = None
    """Held-out real images: dataset, fid, n."""
    seconds: float = 0.0
    commands: tuple[str, ...] = ()
    unfinished: bool = False
    """A report so far, of a sweep that has not ended."""
    note: str = ""
    """What else there is to say, for the end of the summary."""


def render_report(result: SweepResult, context: Context) -> str:
    """The page as text. Everything that comes from outside is escaped; figures and pictures are inside the page."""
    pictures = {title: base64.b64encode(png).decode() for title, png in context.grids.items()}
    figures = [(drawing, [Markup(svg) for svg in drawing.svgs]) for drawing in drawings(result)]
    seconds = sum(trial.seconds for trial in result.trials)
    return render(
        "report.html.j2",
        result=result,
        context=context,
        pictures=pictures,
        figures=figures,
        trial_seconds=seconds,
        summary=summary(result, context),
        columns=_columns(result),
    )


def render(name: str, **content: Any) -> str:
    """A template of this package as text, in the style of all pages."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = lambda value, digits=3: f"{value:.{digits}f}"
    environment.filters["interval"] = lambda e: "{:.3f} to {:.3f}".format(*interval_95(e.fid, e.se, len(e.influence)))
    environment.filters["gap"] = gap_in_words
    here = resources.files("edm_ray.report")
    template = environment.from_string(here.joinpath(name).read_text())
    return template.render(style=Markup(here.joinpath("style.css").read_text()), **content)


def _columns(result: SweepResult) -> dict[str, str]:
    """Setting -> heading, of all that tells the samplers from each other."""
    tried = dict.fromkeys(trial.evaluation.label for trial in result.trials)
    names = dict.fromkeys(name for label in tried for name in result.samplers[label])
    return {name: IN_PAPER.get(name, name) for name in names}


def summary(result: SweepResult, context: Context) -> list[str]:
    """What was found, in a few sentences. Raises InputError when a finished sweep has no winner."""
    if not context.unfinished:
        return [*result.summary(), *([context.note] if context.note else [])]
    told = [trial for trial in result.trials if trial.estimate is not None]
    lines = [
        f"This sweep has not ended: {len(told)} evaluations so far, {len(result.trials) - len(told)} failed. "
        "Run its command again: it resumes from its chunks."
    ]
    longest = max((trial.evaluation.chunks for trial in told if trial.evaluation.seeds == "search"), default=0)
    ranks = [(t.estimate, t.evaluation.label) for t in told if t.evaluation.chunks == longest and t.estimate]
    if ranks:
        estimate, label = min(ranks, key=lambda item: (item[0].debiased, item[1]))
        lines.append(
            f"Best so far, of {len(ranks)} looked at longest: {label}, FID {estimate.fid:.3f} +- {estimate.se:.3f} on "
            f"{estimate.n} images. It is chosen by these images and not confirmed on fresh ones, so it looks too good."
        )
    return lines
