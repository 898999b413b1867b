"""What the README claims has a row in docs/status.md; every test, file and heading that documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATUS = ROOT / "docs" / "status.md"
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "cluster").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    *sorted((ROOT / "research").rglob("*.md")),
]
BENCHMARKS, RESEARCH = ROOT / "benchmarks", ROOT / "research"
NOT_BENCHMARKS = {"__init__", "results", "processes", "marks", "progress", "ticks"}
"""Helpers; and the contenders, which a benchmark runs."""


def _rows() -> dict[str, str]:
    """First cell (without marks) -> second cell, of the table of the README's claims."""
    section = STATUS.read_text().split("## What the README says", 1)[1].split("\n## ", 1)[0]
    cells = [line.strip("| ").split(" | ", 1) for line in section.splitlines() if line.startswith("| ")]
    return {_plain(first): second for first, second in cells[1:]}


def _plain(text: str) -> str:
    return re.sub(r"[*`]", "", " ".join(text.split())).rstrip(".")


def test_every_claim_that_the_readme_prints_bold_has_its_row():
    claims = [_plain(claim) for claim in re.findall(r"\*\*(.+?)\*\*", (ROOT / "README.md").read_text(), re.S)]
    assert len(claims) >= 5
    missing = [claim for claim in claims if claim not in _rows()]
    assert not missing, f'docs/status.md, "What the README says": add a row that begins with {missing}, and its test'


def test_every_claim_is_shown_by_a_test_a_benchmark_or_a_log():
    for claim, shown in _rows().items():
        assert re.search(r"`(tests|benchmarks|research)/|\]\(", shown), f"docs/status.md: what shows {claim!r}?"


def _missing(name: str) -> str | None:
    """Why `tests/x.py::name` is nothing that could be run; None when it is there."""
    path, _, function = name.partition("::")
    found = sorted(ROOT.glob(path.rstrip("/")))
    if not found:
        return f"there is no {path}"
    function = function.rsplit("::", 1)[-1].split("[")[0]
    if function and not any(f"def {function}(" in file.read_text() for file in found):
        return f"{path} has no {function}"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_the_tests_and_benchmarks_that_a_document_names_are_there(document):
    """A test that is renamed takes its row with it."""
    names = re.findall(r"`((?:tests|benchmarks|research)/[\w./*:\[\]-]+)`", document.read_text())
    wrong = {name: why for name in names if (why := _missing(name))}
    assert not wrong, wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_the_modules_that_a_document_runs_are_there(document):
    names = re.findall(r"python -m ((?:benchmarks|research)(?:\.\w+)*)", document.read_text())
    wrong = [name for name in names if name != "benchmarks.NAME" and not _is_module(name)]
    assert not wrong, wrong


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_every_benchmark_and_every_experiment_has_its_line():
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")} - NOT_BENCHMARKS
    scripts |= {path.parent.name for path in BENCHMARKS.glob("*/__main__.py")}
    scripts = {name for name in scripts if not name.endswith("_contenders")}
    listed = set(re.findall(r"^\| `(\w+)", (BENCHMARKS / "README.md").read_text(), re.M))
    assert scripts == listed
    folders = {path.parent.name for path in RESEARCH.glob("*/README.md")}
    assert folders == set(re.findall(r"^\| \[`(\w+)`\]", (RESEARCH / "README.md").read_text(), re.M))
    assert folders == {path.name for path in RESEARCH.iterdir() if path.is_dir() and not path.name.startswith("__")}


def test_benchmarks_and_experiments_write_nothing_into_the_documentation():
    for path in [*BENCHMARKS.rglob("*.py"), *RESEARCH.rglob("*.py")]:
        assert not re.search(r"[\"']docs[\"'/]", path.read_text()), path


def test_the_product_imports_neither_benchmarks_nor_research():
    for path in (ROOT / "edm_ray").rglob("*.py"):
        assert not re.search(r"^\s*(?:from|import) (?:benchmarks|research)\b", path.read_text(), re.M), path


def _anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_the_links_of_a_document_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name}: {link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target), f"{document.name}: {link}: {target.name} has no such heading"


def test_what_was_not_run_comes_first():
    headings = re.findall(r"^## (.+)$", STATUS.read_text(), re.M)
    assert headings[:2] == ["Not run", "What the README says"]
