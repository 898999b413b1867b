"""Writes docs/reference/*.md from the commands and classes as they are: `python docs/write_reference.py`.

A test (tests/docs/test_reference.py) says when a page is out of date.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import json
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edm_ray
from edm_ray.cli import COMMANDS, module_name
from edm_ray.cli.examples import EXAMPLES
from edm_ray.cli.option_list import default_text, field_docs, options_of
from edm_ray.config.kinds import kinds_of
from edm_ray.config.training import TrainingConfig
from edm_ray.data.importers.pictures import PictureOptions
from edm_ray.data.manifest import DataSet
from edm_ray.diffusion.samplers import SOLVERS, Sampler
from edm_ray.diffusion.samplers.base import settings
from edm_ray.distributed.executor import Ray
from edm_ray.execution.local import Local
from edm_ray.search.plan import SweepPlan
from edm_ray.search.race import Race
from edm_ray.tasks.evaluate import EvaluateOptions
from edm_ray.tasks.prepare import PrepareOptions
from edm_ray.tasks.reference import ReferenceOptions
from edm_ray.tasks.sweep import BudgetOptions
from edm_ray.tasks.train import TrainOptions

GROUPS = {
    "Tasks": (
        "prepare",
        "train",
        "generate",
        "reference",
        "evaluate",
        "evaluate_trainings",
        "follow",
        "fid",
        "sweep",
        "sweep_plan",
    ),
    "Where work runs": ("Local", "Ray"),
    "Data sets and models": (
        "DataSet",
        "open_dataset",
        "write_dataset",
        "preset",
        "ModelDenoiser",
        "load_model",
        "save_model",
        "import_model",
    ),
    "Sampling": ("sample", "sampler", "Sampler", "Evaluation", "Noise", "image_noise", "one_hot_labels"),
    "Solvers": tuple(cls.__name__ for cls in SOLVERS.values() if cls.__module__.startswith("edm_ray.")),
    "Denoisers": ("Denoiser", "AtLevel", "Guided", "GaussianMixture", "IdealDenoiser"),
    "Preconditioning and loss": ("EDM", "VP", "VE", "IDDPM", "objective", "Path"),
    "Analysis": ("invert", "reconstruct", "truncation_errors"),
    "Errors": ("InputError",),
}
"""Of the names of the face: heading -> names, in the order of the page."""
PLAIN_NAMES = {
    "Noise": "The type of a function `noise(step, draw=0)` that returns unit normal noise shaped like the latents."
}
"""What has no docstring of its own."""
OPTIONS = {
    "prepare": (PrepareOptions, PictureOptions),
    "train": (TrainOptions,),
    "reference": (ReferenceOptions,),
    "evaluate": (EvaluateOptions,),
    "sweep": (BudgetOptions,),
    "sweep_plan": (SweepPlan, Race),
    "Local": (Local,),
    "Ray": (Ray,),
    "DataSet": (DataSet,),
}
"""Of functions that take ``**options``, and fields of classes; of `sweep_plan` those of the default strategy."""
FOLDER = Path(__file__).parent / "reference"
WRITTEN = "<!-- Written by docs/write_reference.py from the code: change the code, and run it again. -->\n"


def pages() -> dict[str, str]:
    """Name of a file -> its text."""
    return {
        "commands.md": commands_page(),
        "configuration.md": configuration_page(),
        "samplers.md": samplers_page(),
        "python.md": python_page(),
    }


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def commands_page() -> str:
    lines = [
        "# Commands",
        WRITTEN,
        "`edm-ray COMMAND --help` says the same in a terminal.\n",
        "| command | what it does |",
    ]
    lines += ["|---|---|", *(f"| [`{name}`](#{name}) | {cell(about)} |" for name, about in COMMANDS.items()), ""]
    for name in COMMANDS:
        module, options = importlib.import_module(module_name(name)), options_of(name)
        given = [each for each in options if each.positional]
        places = "".join(f" {each.name}" if each.default is None else f" [{each.name}]" for each in given)
        lines += [f"## {name}", f"`edm-ray {name}{places} [OPTIONS]`\n", f"{(module.__doc__ or '').strip()}\n"]
        lines += ["| option | default | what it is |", "|---|---|---|"]
        for each in options:
            values = f" {', '.join(each.values)}" if each.values else ""
            default = "must be given" if each.default is None else f"`{each.default}`" if each.default else ""
            lines.append(f"| `{each.name}`{values} | {cell(default)} | {cell(each.about)} |")
        lines += ["", "```sh", *(f"edm-ray {example}" for example in EXAMPLES[name]), "```", ""]
    return "\n".join(lines)


def configuration_page() -> str:
    lines = ["# Configuration of a training", WRITTEN]
    lines += [
        "`--set KEY=VALUE`, `--config FILE` and `config.yaml` of a run take these keys. A part with kinds has the "
    ]
    lines[-1] += (
        "keys of its `kind` only. Defaults are those of the classes; a preset changes many: `edm-ray presets NAME`.\n"
    )
    for title, rows in _tables(TrainingConfig, ""):
        lines += [f"## {title}", "", "| key | default | what it is |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _tables(cls: type, path: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, rows of a table) of a class and of the classes in it."""
    about, hints, below = field_docs(cls), typing.get_type_hints(cls), []
    rows = []
    for each in dataclasses.fields(cls):
        hint = hints[each.name]
        if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or kinds_of(hint)):
            below.append((hint, f"{path}{each.name}."))
        elif each.name != "kind":
            default = default_text(each)
            shown = f"`{cell(default)}`" if default else ""
            rows.append(f"| `{path}{each.name}` | {shown} | {cell(about.get(each.name, ''))} |")
    if rows:
        kind = getattr(cls, "kind", None)
        name = path.rstrip(".") or "The run"
        yield (f"{name}: kind {kind}" if isinstance(kind, str) else name), rows
    for hint, place in below:
        family = kinds_of(hint)
        for made in family.classes.values() if family else [hint]:
            yield from _tables(made, place)


def samplers_page() -> str:
    lines = ["# Settings of samplers", WRITTEN, "`--set KEY=VALUE`, `edm.Heun(key=value)` and tune spaces take these. "]
    lines[-1] += "What they mean is in [samplers](../samplers.md).\n"
    shared = {each.name for each in settings(Sampler)}
    lines += ["## Every solver", "", "| setting | default | what it is |", "|---|---|---|"]
    lines += _settings(Sampler, shared)
    for name, cls in SOLVERS.items():
        if not cls.__module__.startswith("edm_ray."):
            continue  # one of a user's own
        about = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
        own = {each.name for each in settings(cls)} - shared
        lines += ["", f"## {name}", f"`edm.{cls.__name__}`. {about}", ""]
        lines += ["| setting | default | what it is |", "|---|---|---|", *_settings(cls, own)] if own else []
    return "\n".join(lines) + "\n"


def _settings(cls: type[Sampler], names: set[str]) -> list[str]:
    about, rows = field_docs(cls), []
    fields = settings(cls)
    for each, after in itertools.pairwise(fields):
        if each.name not in about and after.name in about:  # the two ends of a range have one text
            about = {**about, each.name: about[after.name]}
    for each in fields:
        if each.name in names:
            default = default_text(each)
            shown = f"`{default}`" if default else ""
            rows.append(f"| `{each.name}` | {shown} | {cell(about.get(each.name, ''))} |")
    return rows


def python_page() -> str:
    grouped = [name for names in GROUPS.values() for name in names]
    public = [name for name in edm_ray.__all__ if not name.startswith("__")]
    assert sorted(grouped) == sorted(public), set(grouped) ^ set(public)
    lines = ["# Names of `import edm_ray as edm`", WRITTEN, "[From Python](../python.md) shows each of them at work.\n"]
    taken: set[str] = set()
    for title, names in GROUPS.items():
        lines += [f"- {title}: {', '.join(_link(name, taken) for name in names)}"]
    for title, names in GROUPS.items():
        lines += ["", f"## {title}"]
        for name in names:
            lines += ["", f"### {name}", *_about(name, getattr(edm_ray, name))]
    return "\n".join(lines)


def _link(name: str, taken: set[str]) -> str:
    """To its heading; a name that differs from one before in capitals only has no address of its own."""
    slug = name.lower()
    if slug in taken:
        return f"`{name}`"
    taken.add(slug)
    return f"[`{name}`](#{slug})"


def _about(name: str, value: Any) -> Iterator[str]:
    text = PLAIN_NAMES.get(name) or inspect.getdoc(value) or ""
    if isinstance(value, type) and value in SOLVERS.values():
        yield f"`edm.{name}(**settings)`. {text}\n"
        yield f"Its settings are [here](samplers.md#{value.solver})."
        return
    if getattr(value, "_is_protocol", False):
        yield from (f"A protocol: any object with these members. {text}", "", "| member | what it is |", "|---|---|")
        yield from _members(value)
        return
    if name not in PLAIN_NAMES:
        yield from ("```python", f"edm.{name}{_signature(value)}", "```")
    yield text
    if name in OPTIONS:
        yield from ("", "| option | default | what it is |", "|---|---|---|")
        for kind in OPTIONS[name]:
            yield from _option_rows(kind)


def _members(protocol: type) -> Iterator[str]:
    for name, value in vars(protocol).items():
        about = cell(" ".join((inspect.getdoc(value) or "").split()))
        if inspect.isfunction(value) and (name == "__call__" or not name.startswith("_")):
            given = ", ".join(list(inspect.signature(value).parameters)[1:])
            yield f"| `{'D' if name == '__call__' else name}({given})` | {about} |"
        elif isinstance(value, property):
            yield f"| `{name}` | {about} |"


def _option_rows(kind: type) -> Iterator[str]:
    about = field_docs(kind)
    for each in dataclasses.fields(kind):
        if each.name in about:  # a part that has no text is a dataclass of options itself
            default = "" if each.default is dataclasses.MISSING else f"`{cell(_default(each.default))}`"
            yield f"| `{each.name}` | {default} | {cell(about[each.name])} |"


def _signature(value: object) -> str:
    """One parameter a line where they do not fit into one."""
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "(...)"
    parts, kinds = [], inspect.Parameter
    for each in signature.parameters.values():
        if each.kind is kinds.KEYWORD_ONLY and "*" not in parts and not any(part.startswith("*") for part in parts):
            parts.append("*")
        star = {kinds.VAR_POSITIONAL: "*", kinds.VAR_KEYWORD: "**"}.get(each.kind, "")
        hint = "" if each.annotation is kinds.empty else f": {_hint(each.annotation)}"
        default = "" if each.default is kinds.empty else f" = {_default(each.default)}"
        parts.append(f"{star}{each.name}{hint}{default}")
    result = signature.return_annotation
    end = "" if result is kinds.empty or isinstance(value, type) else f" -> {_hint(result)}"
    line = f"({', '.join(parts)}){end}"
    return line if len(line) <= 100 else "(\n    " + ",\n    ".join(parts) + f",\n){end}"


def _hint(annotation: Any) -> str:
    return annotation.replace("'", "") if isinstance(annotation, str) else getattr(annotation, "__name__", "...")


def _default(value: Any) -> str:
    """As Python code. Functions and what is made anew are "...": their addresses differ."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = not any(_has_no_default(each) for each in dataclasses.fields(value)) and value == type(value)()
        return f"{type(value).__name__}({'' if plain else '...'})"
    if callable(value) or "<" in repr(value):
        return "..."
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.init and field.default is missing and field.default_factory is missing


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text.rstrip() + "\n")
        sys.stdout.write(f"{FOLDER / name}\n")


if __name__ == "__main__":
    main()
