"""Writes docs/reference/*.md from the commands and classes as they are: `python docs/write_reference.py`.

A test (tests/docs/test_reference.py) says when a page is out of date.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import edm_ray
from edm_ray.cli import COMMANDS, module_name
from edm_ray.cli.examples import EXAMPLES
from edm_ray.cli.option_list import default_text, field_docs, options_of
from edm_ray.config.kinds import kinds_of
from edm_ray.config.training import TrainingConfig
from edm_ray.diffusion.samplers import SOLVERS, Sampler
from edm_ray.diffusion.samplers.base import settings

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
    lines = ["# Names of `import edm_ray as edm`", WRITTEN, "[From Python](../python.md) shows each of them at work.\n"]
    for name in edm_ray.__all__:
        if name.startswith("__"):
            continue
        value = getattr(edm_ray, name)
        if isinstance(value, type) and value in SOLVERS.values():
            link = f"Its settings are [here](samplers.md#{value.solver})."
            lines += [f"## {name}", f"`edm.{name}(**settings)`. {inspect.getdoc(value) or ''}\n", f"{link}\n"]
            continue
        lines += [
            f"## {name}",
            "```python",
            f"edm.{name}{_signature(value)}",
            "```",
            f"{inspect.getdoc(value) or ''}\n",
        ]
    return "\n".join(lines)


def _signature(value: object) -> str:
    """Without what differs from version to version of Python: addresses and module names."""
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "(...)"
    text = re.sub(r"<function <lambda> at 0x[0-9a-f]+>|<function \w+ at 0x[0-9a-f]+>|<factory>", "...", text)
    return re.sub(r"'", "", text)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text.rstrip() + "\n")
        sys.stdout.write(f"{FOLDER / name}\n")


if __name__ == "__main__":
    main()
