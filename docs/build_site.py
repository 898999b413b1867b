"""Gathers the site's pages: every Markdown file of the repository at its own place, and what they link to.

So links between pages, to figures and to source files lead to the same places on the site as in the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
LEFT_OUT = ("tests/", ".github/")


def files() -> list[Path]:
    """Relative to ROOT: pages, and the files that they link to."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [Path(name) for name in listed.stdout.splitlines() if not name.startswith(LEFT_OUT)]
    pages = [name for name in names if name.suffix == ".md" and (ROOT / name).is_file()]
    found = set(pages)
    for page in pages:
        for link in LINK.findall((ROOT / page).read_text()):
            target = Path(os.path.normpath(ROOT / page.parent / link))  # a link of the file system stays one
            if "://" not in link and target.is_file() and target.is_relative_to(ROOT):
                found.add(target.relative_to(ROOT))
    return sorted(found)


def gather(folder: Path) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    gathered = files()
    for name in gathered:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_page(name) if name.suffix == ".md" else (ROOT / name).read_bytes())
    return len(gathered)


def _page(name: Path) -> bytes:
    """Links to folders lead to their page, where they have one, else to nothing: the text stays."""
    text = (ROOT / name).read_text()

    def settled(match: re.Match[str]) -> str:
        label, link = match[1], match[2]
        path, hash_mark, anchor = link.partition("#")
        target = ROOT / name.parent / path
        if "://" in link or not path or not target.is_dir():
            return match[0]
        if (target / "README.md").is_file():
            return f"[{label}]({path.rstrip('/')}/README.md{hash_mark}{anchor})"
        return label

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", settled, text).encode()


if __name__ == "__main__":
    sys.stdout.write(f"{gather(ROOT / 'build' / 'site-source')} files gathered\n")
