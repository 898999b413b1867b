"""docs/reference is what the commands and classes say now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("write_reference", ROOT / "docs" / "write_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def test_the_pages_are_what_the_code_says(pages):
    assert {path.name for path in FOLDER.glob("*.md")} == set(pages)
    old = [name for name, text in pages.items() if (FOLDER / name).read_text() != text.rstrip() + "\n"]
    assert not old, f"run `python docs/write_reference.py`: {old} are out of date"


def test_every_command_option_key_and_name_is_there(pages):
    import edm_ray
    from edm_ray.cli import COMMANDS
    from edm_ray.cli.completion import named_options
    from edm_ray.diffusion.samplers import SOLVERS

    for command in COMMANDS:
        section = pages["commands.md"].partition(f"\n## {command}\n")[2].partition("\n## ")[0]
        assert [option for option in named_options(command) if f"`{option}`" not in section] == ["--help"]
    ours = [name for name, cls in SOLVERS.items() if cls.__module__.startswith("edm_ray.")]  # tests have their own
    assert all(f"\n## {name}\n" in pages["samplers.md"] for name in ours)
    assert all(f"\n### {name}\n" in pages["python.md"] for name in edm_ray.__all__ if not name.startswith("__"))
    assert "`optimizer.lr`" in pages["configuration.md"] and "kind vp" in pages["configuration.md"]
    assert " 0x" not in "".join(pages.values())  # no addresses: the pages are the same on every machine


@pytest.mark.parametrize("name", ["commands.md", "configuration.md", "samplers.md"])
def test_every_option_and_key_says_what_it_is(pages, name):
    empty = [line for line in pages[name].splitlines() if line.startswith("| `") and line.rstrip().endswith("|  |")]
    assert not empty
