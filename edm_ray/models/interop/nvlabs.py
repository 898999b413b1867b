"""Networks of Karras et al. 2022 in: from constructor arguments, or from a network pickle that is never executed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.errors import InputError, nearest
from edm_ray.models.interop.containers import read_network_file
from edm_ray.models.interop.inert import TensorRecord
from edm_ray.models.interop.official import WRAPPERS, official_arguments, official_config
from edm_ray.models.interop.pickles import Holder, shown
from edm_ray.models.interop.source import MAX_BYTES, fetch
from edm_ray.models.weights import misfit
from edm_ray.networks import build_denoiser

MAX_MODULES = 20_000
MAX_DEPTH = 16

EDM2_CLASSES = ("Precond", "UNet")
"""Of EDM2's training/networks_edm2.py."""


def from_official(class_name: str, kwargs: Mapping[str, Any]) -> torch.nn.Module:
    """A preconditioned denoiser with fresh weights from an official class name and its constructor arguments.

    class_name: VPPrecond, VEPrecond, iDDPMPrecond or EDMPrecond. Its state dict has the official names;
    forward(x [B, C, R, R], sigma [B] or scalar, class_labels=None, augment_labels=None) -> float32 [B, C, R, R].
    Raises InputError for unknown classes and arguments (the nearest is named) and for impossible networks.
    """
    return build_denoiser(official_config(class_name, kwargs))


@dataclass(frozen=True, eq=False, kw_only=True)
class Imported:
    """A network read from a foreign file."""

    config: DenoiserConfig
    state: dict[str, torch.Tensor] = field(repr=False)
    facts: dict[str, Any]
    """File name and sha256, class names, and what the file says of its training."""

    def denoiser(self, device: str = "cpu") -> torch.nn.Module:
        """D(x, sigma, class_labels) in evaluation mode."""
        denoiser = build_denoiser(self.config)
        denoiser.load_state_dict(self.state)
        return denoiser.to(device).eval().requires_grad_(False)


def import_pickle(
    source: str, key: str = "ema", sha256: str | None = None, max_bytes: int = MAX_BYTES
) -> Imported:  # fmt: skip
    """Read a network pickle or training state of the official code, as data: nothing in it is executed.

    source: local path, s3:// or https:// URL. key: which network of the file ("ema"; a training state has "net").
    Raises InputError naming the offending global, argument or tensor; IntegrityError when ``sha256`` differs.
    """
    file = fetch(source, sha256, max_bytes)
    content = read_network_file(file.content, file.name)
    try:
        network = chosen_network(content, key)
        config, arguments = network_config(network)
        state = tensors(network, len(file.content))
        check_tensors(config, state)
    except InputError as error:
        raise InputError(f"{file.name}: {error}") from None
    facts = {
        "file": file.name,
        "sha256": file.sha256,
        "key": key,
        "class_name": network.class_name,
        "arguments": {name: plain(value) for name, value in sorted(arguments.items())},
        **training_facts(content, file.name),
    }
    return Imported(config=config, state=state, facts=facts)


def chosen_network(content: object, key: str) -> Holder:
    """The network under ``key`` of the file's dictionary."""
    if not isinstance(content, dict):
        raise InputError(f"holds a {_kind(content)}, not a dictionary with 'ema' or 'net'")
    if other := what_else_it_is(content, key):
        raise InputError(other)
    networks = [name for name, value in content.items() if isinstance(value, Holder) and value.class_name in WRAPPERS]
    if key not in content:
        held = ", ".join(shown(name) for name in content if isinstance(name, str)) or "nothing"
        fix = f"; give --key {networks[0]}" if networks else ""
        raise InputError(f"has no network {key!r}{nearest(key, map(str, content))}, it holds: {held}{fix}")
    network = content[key]
    if not isinstance(network, Holder) or network.class_name not in WRAPPERS:
        raise InputError(f"{key!r} is a {_kind(network)}; networks of {', '.join(WRAPPERS)} can be imported")
    return network


def what_else_it_is(content: dict[Any, Any], key: str) -> str:
    """Known files that are no network of EDM, with what to do; empty for others."""
    if isinstance(content.get(key), Holder) and content[key].class_name in EDM2_CLASSES:
        return (
            f"{key!r} is a network of EDM2 (class {content[key].class_name}, Karras et al. 2024): another U-Net, which "
            "is not built here; import a network of EDM (2022)"
        )
    if content and all(isinstance(value, TensorRecord) for value in content.values()):
        return (
            "holds tensors alone (a state dict), which do not say what network they are of; give the .pkl snapshot, "
            "or build the network in Python and keep it with edm.save_model"
        )
    return ""


def _kind(value: object) -> str:
    return shown(value.class_name) if isinstance(value, Holder) else shown(type(value).__name__)


def network_config(network: Holder) -> tuple[DenoiserConfig, dict[str, Any]]:
    """Configuration and constructor arguments from ``_init_kwargs``, compared with what else the file says."""
    state = _state(network)
    arguments = state.get("_init_kwargs")
    if not isinstance(arguments, dict):
        raise InputError(f"{network.class_name} does not say how it was made (_init_kwargs)")
    positional = state.get("_init_args", ())
    names = list(WRAPPERS[network.class_name])
    if not isinstance(positional, (tuple, list)) or len(positional) > len(names):
        raise InputError(f"{network.class_name} was made with positional arguments that do not fit (_init_args)")
    arguments = {**dict(zip(names, positional)), **arguments}
    config = official_config(network.class_name, arguments)
    wrapper, _ = official_arguments(network.class_name, arguments)
    for name in ("img_resolution", "img_channels", "label_dim", "sigma_data"):
        if name in state and name in wrapper and state[name] != wrapper[name]:
            found = state[name] if isinstance(state[name], (int, float)) else _kind(state[name])
            raise InputError(f"{network.class_name}: {name} is {found}, but it was made with {wrapper[name]}")
    model = _dictionary(state, "_modules").get("model")
    if not isinstance(model, Holder) or model.class_name != wrapper["model_type"]:
        raise InputError(f"{network.class_name}: its model is a {_kind(model)}, not a {wrapper['model_type']}")
    return config, arguments


def _state(holder: Holder) -> dict[str, Any]:
    if holder.state is None:
        raise InputError(f"{shown(holder.class_name)} has no state")
    return holder.state


def _dictionary(state: dict[str, Any], name: str) -> dict[str, Any]:
    value = state.get(name, {})
    if not isinstance(value, dict) or not all(isinstance(key, str) and key and "." not in key for key in value):
        raise InputError(f"{name} of a module is not a dictionary of plain names")
    return value


def tensors(network: Holder, max_bytes: int) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers under their state-dict names, sorted; ``max_bytes`` in all."""
    records: dict[str, TensorRecord] = {}
    seen: set[int] = set()
    stack: list[tuple[str, Holder, int]] = [("", network, 0)]
    while stack:
        prefix, holder, depth = stack.pop()
        if id(holder) in seen:
            raise InputError(f"module {prefix[:-1]!r} occurs twice in the network")
        seen.add(id(holder))
        if len(seen) > MAX_MODULES or depth > MAX_DEPTH:
            raise InputError(f"more than {MAX_MODULES:,} modules, or modules nested deeper than {MAX_DEPTH}")
        state = _state(holder)
        hidden = state.get("_non_persistent_buffers_set", set())
        for part in ("_parameters", "_buffers"):
            for name, value in _dictionary(state, part).items():
                if value is None or (part == "_buffers" and isinstance(hidden, set) and name in hidden):
                    continue
                if not isinstance(value, TensorRecord):
                    raise InputError(f"{prefix}{shown(name)} is a {_kind(value)}, not a tensor")
                records[prefix + name] = value
        for name, child in _dictionary(state, "_modules").items():
            if child is None:
                continue
            if not isinstance(child, Holder):
                raise InputError(f"{prefix}{shown(name)} is a {_kind(child)}, not a module")
            stack.append((f"{prefix}{name}.", child, depth + 1))
    total = sum(record.span * record.storage.dtype.itemsize for record in records.values())
    if total > max_bytes:
        raise InputError(f"its tensors take {total:,} bytes, the file has {max_bytes:,}: a decompression bomb")
    return {name: records[name].tensor() for name in sorted(records)}


def check_tensors(config: DenoiserConfig, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a state dict that is not the configured network's: tensor, expected and found are named."""
    with torch.device("meta"):
        expected = build_denoiser(config).state_dict()
    if wrong := misfit(expected, state):
        others = {tensor.dtype for tensor in state.values() if tensor.dtype.is_floating_point} - {torch.float32}
        form = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        fix = f"; it has {form} weights: save it again as float32 (net.float()), from which nothing is lost here"
        raise InputError(wrong + (fix if others else ""))
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"tensor {name!r} has values that are not finite")


def plain(value: Any) -> Any:
    """An argument as JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def training_facts(content: object, name: str) -> dict[str, Any]:
    """What a file says of its training, where it says it: data set, loss, images seen (from the file's name)."""
    facts: dict[str, Any] = {}
    if not isinstance(content, dict):
        return facts
    data = content.get("dataset_kwargs")
    path = data.get("path") if isinstance(data, dict) else None
    if isinstance(path, str) and (stem := re.split(r"[/\\]", path)[-1].removesuffix(".zip")):
        facts["dataset"] = shown(stem)
    if isinstance(loss := content.get("loss_fn"), Holder):
        facts["loss"] = shown(loss.class_name)
    if match := re.fullmatch(r"(?:network-snapshot|training-state)-(\d{1,9})\.(?:pkl|pt)", name):
        facts["images_seen"] = int(match[1]) * 1000
    return facts
