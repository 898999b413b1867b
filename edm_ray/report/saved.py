"""What a sweep keeps for its report: the result, what the page says beside it, and the grids as PNG files."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from edm_ray.config.load import validate
from edm_ray.errors import InputError, IntegrityError, shortened
from edm_ray.report.html import Context, render_report
from edm_ray.search.result import REWRITE, SweepResult
from edm_ray.storage import uris
from edm_ray.storage.documents import MAX_BYTES, load_json
from edm_ray.storage.versioned import read_json, write_json

RESULT, CONTEXT, PAGE, PROGRESS = "sweep.json", "report.json", "report.html", "progress.json"
BUDGETS = "budgets.json"
MARKS = (RESULT, PROGRESS, BUDGETS)
"""A folder with one of them is a sweep's."""
MAXGRID_BYTES = 64 << 20
GRID = re.compile(r"samples-\d{1,4}\.png")


def save_report(out: str, result: SweepResult, context: Context) -> str:
    """Write result, context, grids and the page into a sweep's directory; returns the page's path."""
    names = {title: f"samples-{number}.png" for number, title in enumerate(context.grids, 1)}
    for title, name in names.items():
        uris.write_bytes(uris.join(out, name), context.grids[title])
    content: dict[str, Any] = {**dataclasses.asdict(context), "grids": names}
    uris.write_bytes(uris.join(out, RESULT), json.dumps(result.to_dict(), indent=1).encode())
    write_json(uris.join(out, CONTEXT), content)
    return write_page(out, result, context)


def save_progress(out: str, result: SweepResult, context: Context) -> None:
    """Keep what an unfinished sweep knows, for a report so far."""
    content = {"result": result.to_dict(), "context": {**dataclasses.asdict(context), "unfinished": True}}
    write_json(uris.join(out, PROGRESS), content)


def write_page(out: str, result: SweepResult, context: Context) -> str:
    page = uris.join(out, PAGE)
    uris.write_bytes(page, render_report(result, context).encode())
    return page


def load_report(out: str) -> tuple[SweepResult, Context]:
    """Read a sweep's directory; of one that has not ended what there is so far (``Context.unfinished``).

    Raises InputError when there is none, IntegrityError when it is damaged.
    """
    if not uris.exists(uris.join(out, RESULT)):
        path = uris.join(out, PROGRESS)
        if uris.exists(path):
            so_far = read_json(path, REWRITE)
            result, context = so_far.get("result") or {}, so_far.get("context") or {}
            return SweepResult.from_dict(result, path), validate(Context, context, path)
        if (names := set(uris.list_names(out))) & {"run.json", "evaluation.json"}:
            what = "a training run" if "run.json" in names else "an evaluation"
            raise InputError(f"{out}: {what}, not a sweep; give the --out of an `edm-ray sweep`")
        if "chunks" in names:
            raise InputError(
                f"{out}: a sweep that has not ended, with nothing to report yet; run its command again, it resumes "
                "from its chunks"
            )
        near = [out.rstrip("/").rpartition("/")[0]] if uris.file_size(out) is not None else []
        near += [uris.join(out, name) for name in sorted(names)]
        if sweeps := [place for place in near if any(uris.exists(uris.join(place, name)) for name in MARKS)]:
            raise InputError(f"{out}: no sweep itself; give {' or '.join(sweeps[:4])}")
        raise InputError(f"{out}: no sweep there ({RESULT} is missing); give the --out of an `edm-ray sweep`")
    result = SweepResult.from_dict(_json(uris.join(out, RESULT)), uris.join(out, RESULT))
    if not uris.exists(uris.join(out, CONTEXT)):
        raise InputError(f"{out}: {CONTEXT} is missing; run the sweep's command again, it generates nothing twice")
    about = read_json(uris.join(out, CONTEXT), REWRITE)
    grids = _grids(out, about.get("grids", {}))
    return result, validate(Context, {**about, "grids": grids}, uris.join(out, CONTEXT))


def _grids(out: str, names: object) -> dict[str, bytes]:
    """The pictures that a sweep wrote, by title. Raises IntegrityError for the name of any other file."""
    path, grids = uris.join(out, CONTEXT), {}
    if not isinstance(names, dict):
        raise IntegrityError(f"{path}: grids={shortened(names)} is not allowed: a mapping of titles to files")
    for title, name in names.items():
        if not isinstance(name, str) or not GRID.fullmatch(name):
            raise IntegrityError(f"{path}: the grid {shortened(name)} is no file of a sweep; nothing else is read")
        uris.refuse_link_out(out, name)
        grids[title] = uris.read_bytes(uris.join(out, name), MAXGRID_BYTES)
    return grids


def _json(path: str) -> dict[str, Any]:
    try:
        content = load_json(uris.read_bytes(path, MAX_BYTES), path)
    except uris.NotFound:
        raise
    except InputError as error:
        raise IntegrityError(f"{error}; run the sweep's command again to rewrite it") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{path}: not what a sweep writes; run the sweep's command again to rewrite it")
    return content
