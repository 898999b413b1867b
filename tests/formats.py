"""Which files of a folder carry no format version."""

from __future__ import annotations

import json
from pathlib import Path

import yaml


def without_format(folder: Path) -> list[Path]:
    """JSON and YAML files, and those of JSON lines, that do not say the version at the top, or in every line. The
    manifest of a directory speaks for the files that it lists."""
    listed = {
        manifest.parent / name
        for manifest in folder.rglob("manifest.json")
        for name in json.loads(manifest.read_text()).get("files", {})
    }
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".jsonl", ".yaml") and path not in listed:
            text = path.read_text()
            objects = (
                [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [yaml.safe_load(text)]
            )
            if not objects or not all(each.get("format") in (1, 2) for each in objects):
                found.append(path)
    return found
