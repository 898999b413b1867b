"""Runs the commands of docs/tutorial.md in their order, in a folder; `--write FOLDER` puts their output into the page.

A block of text after a block of commands is their output. Lines of progress are left out: their number depends on time.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent / "tutorial.md"
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.M | re.S)
PROGRESS = re.compile(r"[\d,]+ of [\d,]+\b")


@dataclass(frozen=True)
class Step:
    language: str
    code: str
    shown: str | None
    """What the page says it prints."""


def steps(text: str) -> Iterator[Step]:
    blocks = [(match[1], match[2]) for match in BLOCK.finditer(text)]
    for (language, code), (following, shown) in zip(blocks, [*blocks[1:], ("", "")]):
        if language != "text":
            yield Step(language, code, shown if following == "text" else None)


def run(step: Step, folder: Path) -> str:
    """What it prints, without progress. Raises RuntimeError with all it has said when it fails."""
    command = (
        [sys.executable, "-c", step.code] if step.language == "python" else ["bash", "-eo", "pipefail", "-c", step.code]
    )
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{step.code}\n{done.stdout}")
    said = done.stdout.replace(str(folder), "...").replace("\N{BOX DRAWINGS LIGHT HORIZONTAL}", "-")
    lines = [line.rstrip() for line in said.splitlines()]
    return "".join(f"{line}\n" for line in lines if line and not PROGRESS.search(line))


def write(folder: Path) -> None:
    text = PAGE.read_text()
    for step in steps(text):
        said = run(step, folder)
        sys.stdout.write(f"$ {step.code}{said}")
        if step.shown is not None:
            text = text.replace(f"{step.code}```\n```text\n{step.shown}```", f"{step.code}```\n```text\n{said}```")
    PAGE.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"] or len(sys.argv) != 3:
        sys.exit("usage: python docs/run_tutorial.py --write FOLDER")
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    write(Path(sys.argv[2]).absolute())
