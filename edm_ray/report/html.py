"""The report of a sweep: one HTML file that needs nothing else, online or off."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from importlib import resources

import jinja2
from markupsafe import Markup

from edm_ray.report.figures import drawings
from edm_ray.search.result import SweepResult


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


def render_report(result: SweepResult, context: Context) -> str:
    """The page as text. Everything that comes from outside is escaped; figures and pictures are inside the page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = lambda value, digits=3: f"{value:.{digits}f}"
    template = environment.from_string(resources.files("edm_ray.report").joinpath("report.html.j2").read_text())
    pictures = {title: base64.b64encode(png).decode() for title, png in context.grids.items()}
    figures = [(drawing, Markup(drawing.svg)) for drawing in drawings(result, context.reference)]
    seconds = sum(trial.seconds for trial in result.trials)
    return template.render(
        result=result,
        context=context,
        pictures=pictures,
        figures=figures,
        trial_seconds=seconds,
        winner=result.require_best(),
        summary=result.summary(),
    )
