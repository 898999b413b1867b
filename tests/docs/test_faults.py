"""docs/faults.md is what the table says, and the table names tests that are there."""

from __future__ import annotations

import ast
from pathlib import Path

from edm_ray.distributed.patience import Patience
from tests import faults

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_table():
    """`python -m tests.faults` writes it."""
    assert faults.PAGE.read_text().endswith(f"\n\n{faults.page()}")


def test_every_test_that_a_cell_names_is_there():
    for name in sorted(faults.tests()):
        file, function = name.split("::")
        tree = ast.parse((ROOT / file).read_text())
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name


def test_every_rule_decides_a_cell_and_every_cell_is_counted_once():
    used = {id(faults.decided(cell)) for cell in faults.cells()}
    idle = [each for each in faults.RULES if id(each) not in used]
    assert not idle and sum(faults.counts().values()) == len(faults.cells()) == 9 * 7 * 4
    known = {"*", *faults.VICTIMS, *faults.MOMENTS, *faults.KINDS}
    for each in faults.RULES:
        named = ", ".join((each.victims, each.moments, each.kinds)).split(", ")
        assert set(named) <= known and bool(each.tests) != bool(each.impossible)


def test_the_times_on_the_page_are_those_of_the_code():
    patience = Patience()
    assert (patience.silent_s, patience.factor, patience.least_s) == (45.0, 10.0, 67.5)
    assert (patience.restart_s, patience.first_s, patience.collective_s) == (720.0, 1800.0, 1890.0)
