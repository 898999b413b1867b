"""The notebook was executed, and its code is of this version."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import edm_ray

NOTEBOOK = Path(__file__).parents[2] / "examples" / "read_a_sweep.ipynb"


def test_every_cell_was_run_and_names_only_what_there_is():
    text = NOTEBOOK.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4 and [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells) and '"output_type": "error"' not in text
    assert not [place for place in ("/tmp/", "/home/", "/root/") if place in text]
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edm":
            assert node.attr in edm_ray.__all__
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("edm_ray"):
            assert all(hasattr(importlib.import_module(str(node.module)), alias.name) for alias in node.names)
    assert any(output.get("data", {}).get("image/png") for cell in cells for output in cell["outputs"])
