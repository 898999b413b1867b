"""The code of docs/python.md runs in its order, and shows every name of the face; README's compiles."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import textwrap
from pathlib import Path

import pytest

import edm_ray

ROOT = Path(__file__).parents[2]
GUIDE, README = ROOT / "docs" / "python.md", ROOT / "README.md"
NOT_RUN = "<!-- not run -->"


def _code(document: Path, all_of_it: bool = False) -> str:
    """The Python of a document, every line at its own number; without blocks that are marked as not run."""
    lines, inside, run, before = [], False, False, ""
    code: list[str] = []
    for line in document.read_text().splitlines():
        if inside and line.strip() == "```":
            lines += [*textwrap.dedent("\n".join(code)).splitlines(), ""] if run else [""] * (len(code) + 1)
            inside = False
        elif inside:
            code.append(line)
        else:
            inside, code = line.strip() == "```python", []
            run = inside and (all_of_it or before.strip() != NOT_RUN)
            lines.append("")
        before = line
    assert not inside, f"{document.name}: a block of code does not end"
    return "\n".join(lines)


def _names(code: str) -> set[str]:
    """x of every edm.x."""
    found = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute))
    return {node.attr for node in found if isinstance(node.value, ast.Name) and node.value.id == "edm"}


def test_lines_keep_their_numbers():
    lines, text = _code(GUIDE, all_of_it=True).splitlines(), GUIDE.read_text().splitlines()
    assert all(line.strip() in ("", text[number].strip()) for number, line in enumerate(lines))
    assert sum(bool(line) for line in lines) > 50


def test_every_name_of_the_face_is_shown():
    named = _names(_code(GUIDE, all_of_it=True)) | set(re.findall(r"`edm\.(\w+)`", GUIDE.read_text()))
    assert set(edm_ray.__all__) - named == {"__version__"}


@pytest.mark.parametrize("document", [GUIDE, README], ids=["guide", "readme"])
def test_code_names_only_what_there_is(document):
    names = _names(_code(document, all_of_it=True))
    assert names, document
    assert names <= set(edm_ray.__all__)


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    """As a module of its own, since a sampler's identity has its source text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guide.py").write_text(_code(GUIDE))
    spec = importlib.util.spec_from_file_location("guide", tmp_path / "guide.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "guide", module)
    spec.loader.exec_module(module)
    assert "solver dpmpp_2m has no such setting" in capsys.readouterr().out
    assert isinstance(module.found.best, edm_ray.Sampler)
    assert module.back.sub(module.ends).abs().max() < 0.05
    assert (tmp_path / "sweep" / "report.html").exists()
