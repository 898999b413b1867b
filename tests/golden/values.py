"""Golden values in a file: read, write, compare. Arrays and floats are stored to the last bit."""

from __future__ import annotations

import base64
import json
import math
import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden.compute import sha

PATH = Path(os.environ.get("EDM_GOLDEN_VALUES", Path(__file__).with_name("values.json")))
"""Another file: for values that were recorded on this machine, from an older commit."""
LIBRARIES = ("numpy", "optuna", "scikit-learn", "scipy", "torch")
CHOOSERS = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
            "NPY_DISABLE_CPU_FEATURES", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE")  # fmt: skip
"""Variables that choose among kernels."""


def fingerprint() -> dict[str, Any]:
    """What decides the last bits: processor, kernels, libraries."""
    cpu: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for name, value in re.findall(r"^([\w ]+?)\s*: (.*)$", path.read_text() if path.exists() else "", re.MULTILINE):
        cpu.setdefault(name, value)
    return {
        "machine": platform.machine(),
        "cpu": [cpu.get(name, "") for name in ("vendor_id", "cpu family", "model", "model name")],
        "cpu_flags": sha(" ".join(sorted(cpu.get("flags", "").split())).encode())[:8],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "libc": " ".join(platform.libc_ver()),
        "environment": {name: os.environ[name] for name in CHOOSERS if name in os.environ},
        **{name: version(name) for name in LIBRARIES},
    }


def pack(value: Any) -> Any:
    """To what JSON takes."""
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value)
        shape = ",".join(map(str, value.shape))
        return {"array": f"{value.dtype} {shape} {base64.b64encode(content.tobytes()).decode()}"}
    if isinstance(value, dict):
        return {key: pack(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def unpack(value: Any) -> Any:
    if isinstance(value, dict) and "array" in value:
        dtype, shape, content = value["array"].split(" ")
        return np.frombuffer(base64.b64decode(content), dtype).reshape(tuple(map(int, shape.split(","))))
    if isinstance(value, dict):
        return {key: unpack(item) for key, item in value.items()}
    return [unpack(item) for item in value] if isinstance(value, list) else value


def line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def digest(section: dict[str, Any]) -> str:
    """Of one section, packed."""
    return sha(line(section).encode())


def write(sections: dict[str, Any], path: Path) -> None:
    """A line a case, so that a diff names it."""
    packed = {name: pack(section) for name, section in sections.items()}
    head = {"fingerprint": fingerprint(), "digests": {name: digest(section) for name, section in packed.items()}}
    parts = [f'"{name}":{line(value)}' for name, value in head.items()]
    for name, section in packed.items():
        rows = ",\n".join(f" {line(case)}:{line(value)}" for case, value in section.items())
        parts.append(f'"{name}":{{\n{rows}\n}}')
    path.write_text("{" + ",\n".join(parts) + "}\n")


def read(path: Path = PATH) -> dict[str, Any]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def differences(expected: Any, actual: Any, bits: bool, bound: float, where: str = "") -> Iterator[str]:
    """Where two unpacked values differ: to the bit, or floats by more than ``bound`` relative to the largest of their
    array or to 1. uint8 may differ by one grey level. All else is exact."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        if expected.keys() != actual.keys():
            yield f"{where}: {sorted(expected)} is now {sorted(actual)}"
        for key in expected.keys() & actual.keys():
            if key != "bits" or bits:
                yield from differences(expected[key], actual[key], bits, bound, f"{where}/{key}")
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            yield f"{where}: {len(expected)} entries are now {len(actual)}"
        for index, pair in enumerate(zip(expected, actual)):
            yield from differences(*pair, bits, bound, f"{where}/{index}")
    elif isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray):
        if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
            yield f"{where}: {expected.dtype} {expected.shape} is now {actual.dtype} {actual.shape}"
        elif bits and expected.tobytes() != actual.tobytes():
            yield f"{where}: bits differ, by {_gap(expected, actual):.3g} at most"
        elif not _gap(expected, actual) <= (1 if expected.dtype == np.uint8 else bound):
            yield f"{where}: differ by {_gap(expected, actual):.3g}, allowed is {bound:g}"
    elif isinstance(expected, float) and isinstance(actual, float) and not bits:
        same = expected == actual or (math.isnan(expected) and math.isnan(actual))
        if not same and not abs(expected - actual) <= bound * max(1.0, abs(expected)):
            yield f"{where}: {expected!r} is now {actual!r}, allowed is {bound:g}"
    elif type(expected) is not type(actual) or repr(expected) != repr(actual):
        yield f"{where}: {expected!r} is now {actual!r}"


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)
    return float(gap if a.dtype == np.uint8 else gap / max(1.0, np.abs(a).max(initial=0.0)))
