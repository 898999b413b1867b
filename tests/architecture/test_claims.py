"""What the README claims has a row in docs/status.md; every test, file and heading that documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATUS = ROOT / "docs" / "status.md"
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "cluster").rglob("*.md")),
]


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
        assert re.search(r"`(tests|benchmarks)/|\]\(", shown), f"docs/status.md: what shows {claim!r}?"


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
    names = re.findall(r"`((?:tests|benchmarks)/[\w./*:\[\]-]+)`", document.read_text())
    wrong = {name: why for name in names if (why := _missing(name))}
    assert not wrong, wrong


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
