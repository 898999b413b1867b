"""Record the golden values: python -m tests.golden.record [FILE]

Allowed in two cases only. (1) Results are meant to change: in the commit that changes them, which says which and why in
CHANGELOG.md. (2) Cases are added, at a commit at which the test passes: the values of the others must stay. Never to
make a test pass that fails for a reason nobody knows. To compare two commits to the bit on another machine: check out
the older one, record into a FILE outside the repository, and test the newer one with EDM_GOLDEN_VALUES=FILE.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.golden import values
from tests.golden.compute import SECTIONS, compute


def main() -> None:
    sections = {}
    for name in SECTIONS:
        began = time.monotonic()
        sections[name] = compute(name)
        sys.stdout.write(f"{name}: {len(sections[name])} cases, {time.monotonic() - began:.1f} s\n")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else values.PATH
    values.write(sections, path)
    sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
