"""What the package computes is what it computed when the golden values were recorded: to the bit on the processor and
libraries of the recording, within bounds that follow from the arithmetic elsewhere. Whole numbers and decisions are
equal anywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.golden import cases, values
from tests.golden.compute import SECTIONS, compute

RECORDED = values.read()
HERE = values.fingerprint()
SAME_BITS = RECORDED["fingerprint"] == HERE
BOUNDS = {
    "random": 1e-13,
    "samplers": 1e-9,
    "facts": 1e-9,
    "analysis": 1e-9,
    "networks": 1e-4,  # float32: some hundred sums deep
    "training": 1e-3,  # Adam divides small gradients by their own size, so rounding moves parameters
    "evaluation": 1e-3,  # features of float32 on a grid of 2^-14, images up to a grey level apart
    "sweeps": 1e-9,
}
"""Allowed on other processors, relative to the largest value of an array or to 1."""


def test_bits_are_compared_on_this_machine():
    """A skip says that the others compare within bounds, and why."""
    if not SAME_BITS:
        recorded = RECORDED["fingerprint"]
        pytest.skip("; ".join(f"{key}: {recorded[key]} here {HERE[key]}" for key in HERE if recorded[key] != HERE[key]))


def test_the_file_is_as_it_was_recorded():
    for name in SECTIONS:
        assert values.digest(RECORDED[name]) == RECORDED["digests"][name], f"{name}: edited by hand?"


@pytest.mark.parametrize("section", SECTIONS)
def test_values_are_those_recorded(section, monkeypatch):
    expected = values.unpack(RECORDED[section])
    if section == "training" and not SAME_BITS:
        # bf16 has three digits; torch that is told to use AVX2 where there is more has no attention in bf16.
        monkeypatch.delitem(cases.TRAININGS, "bf16")
        del expected["bf16"]
    if section == "sweeps" and any(RECORDED["fingerprint"][name] != HERE[name] for name in values.LIBRARIES[:4]):
        expected = {name: case for name, case in expected.items() if not name.startswith(("race", "optuna"))}
    found = compute(section)
    actual = values.unpack(values.pack({name: found[name] for name in found if name in expected}))
    wrong = list(values.differences(expected, actual, SAME_BITS, BOUNDS[section]))
    assert not wrong, f"{len(wrong)} differ:\n" + "\n".join(wrong[:20])


def _changes(value: Any) -> Any:
    """The value with its first number, flag, text or array element changed as little as that can be."""
    if isinstance(value, np.ndarray):
        changed = value.copy()
        changed.flat[0] = np.nextafter(value.flat[0], 1e9) if value.dtype.kind == "f" else value.flat[0] ^ 1
        return changed
    if isinstance(value, dict):
        key = next(iter(value))
        return value | {key: _changes(value[key])}
    if isinstance(value, list):
        return [_changes(value[0]), *value[1:]]
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int) else float(np.nextafter(value, 1e9)) if isinstance(value, float) else "?"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_smallest_change_of_any_case_is_seen(section):
    for name, case in values.unpack(RECORDED[section]).items():
        assert not list(values.differences(case, case, True, 0.0)), name
        assert len(list(values.differences(case, _changes(case), True, BOUNDS[section]))) == 1, name
