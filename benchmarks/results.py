"""Where a benchmark's numbers go: results/DATE-MACHINE.json, a list of runs, each with what it was measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("results")
FORMAT = 1
PACKAGES = ("torch", "numpy", "scipy", "ray", "pyarrow")

Numbers = Mapping[str, tuple[str, Sequence[float]]]
"""Name -> (unit, every value that was measured)."""


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (least to greatest)."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def record(benchmark: str, numbers: Numbers, settings: Mapping[str, Any], note: str = "") -> Path:
    """Add one run to today's file of this machine; prints and returns where it went."""
    path = FOLDER / f"{datetime.date.today().isoformat()}-{machine_name()}.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"format": FORMAT, "runs": []}
    content["runs"].append(
        {
            "benchmark": benchmark,
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **commit_of(Path(__file__).parents[1]),
            "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1)},
            "versions": {"python": platform.python_version()} | versions(),
            "settings": {name: _plain(value) for name, value in settings.items()},
            "note": note,
            "numbers": {name: _summary(unit, values) for name, (unit, values) in numbers.items()},
        }
    )
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{benchmark}: recorded in {path.relative_to(Path(__file__).parents[1])}")
    return path


def commit_of(checkout: Path) -> dict[str, Any]:
    """The commit of a checkout, and whether its files differ from it."""
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        changed = bool(_git(checkout, "status", "--porcelain", "--", "edm_ray", "benchmarks"))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}
    return {"commit": commit, "changed": changed}


def machine_name() -> str:
    """Of the processor, not of the host: letters, digits and dashes."""
    words = re.findall(r"[a-z0-9.]+", re.sub(r"\((r|tm)\)|cpu|processor|@.*", " ", _cpu().lower()))
    return "-".join([*words, f"{os.cpu_count()}cores"])


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _summary(unit: str, values: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(values)
    quartiles = statistics.quantiles(ordered, n=4) if len(ordered) >= 4 else []
    return {
        "unit": unit,
        "n": len(ordered),
        "median": statistics.median(ordered) if ordered else None,
        "least": ordered[0] if ordered else None,
        "most": ordered[-1] if ordered else None,
        "quartiles": [quartiles[0], quartiles[-1]] if quartiles else None,
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, bool, str, list, type(None))) else str(value)


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu() -> str:
    """The processor's model, as Linux tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return found.group(1).strip() if found else platform.machine()
