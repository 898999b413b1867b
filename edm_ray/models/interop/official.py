"""The constructor arguments of Karras et al. 2022's classes, and the configuration that says the same here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.load import validate
from edm_ray.config.network import LARGEST, DDPMpp, NCSNpp, SongNetwork, UNetConfig
from edm_ray.diffusion.noise import SIGMA_DATA, VE, VP, IDDPMGrid
from edm_ray.errors import InputError, nearest

_COMMON: dict[str, Any] = {"img_resolution": None, "img_channels": None, "label_dim": 0, "use_fp16": False}
WRAPPERS: dict[str, dict[str, Any]] = {
    "VPPrecond": {
        **_COMMON, "beta_d": VP.beta_d, "beta_min": VP.beta_min, "M": IDDPMGrid.num_train_steps,
        "epsilon_t": VP.epsilon_t, "model_type": "SongUNet",
    },
    "VEPrecond": {**_COMMON, "sigma_min": VE.sigma_min, "sigma_max": VE.sigma_max, "model_type": "SongUNet"},
    "iDDPMPrecond": {
        **_COMMON, "C_1": IDDPMGrid.c_1, "C_2": IDDPMGrid.c_2, "M": IDDPMGrid.num_train_steps,
        "model_type": "DhariwalUNet",
    },
    "EDMPrecond": {
        **_COMMON, "sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": SIGMA_DATA, "model_type": "DhariwalUNet",
    },
}  # fmt: skip
"""Class -> arguments in their order, with defaults (None = required)."""
_SIZES: dict[str, Any] = {"augment_dim": 0, "model_channels": 128, "channel_mult": (1, 2, 2, 2), "channel_mult_emb": 4}
NETWORKS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        **_SIZES, "num_blocks": 4, "attn_resolutions": (16,), "dropout": 0.10, "label_dropout": 0.0,
        "embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard",
        "decoder_type": "standard", "resample_filter": (1, 1),
    },
    "DhariwalUNet": {
        **_SIZES, "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
        "attn_resolutions": (32, 16, 8), "dropout": 0.10, "label_dropout": 0.0,
    },
}  # fmt: skip
_FORM = [entry.name for entry in fields(SongNetwork) if entry.name not in {part.name for part in fields(UNetConfig)}]
_DDPMPP, _NCSNPP = ({name: getattr(kind, name) for name in _FORM} for kind in (DDPMpp, NCSNpp))
_KINDS = {"VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm", "EDMPrecond": "edm"}
_RENAMED = {"M": "num_train_steps", "C_1": "c_1", "C_2": "c_2"}
_LARGEST = {**LARGEST, "M": 20_000}


def official_arguments(class_name: str, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the preconditioning and of the network, defaults filled in. Raises InputError, nearest name told."""
    if class_name not in WRAPPERS:
        close = nearest(class_name, WRAPPERS)
        raise InputError(f"class {class_name!r} is unknown{close}; there are: {', '.join(WRAPPERS)}")
    wrapper = dict(WRAPPERS[class_name])
    model_type = kwargs.get("model_type", wrapper["model_type"])
    if not isinstance(model_type, str) or model_type not in NETWORKS:
        close = nearest(str(model_type), NETWORKS)
        raise InputError(f"{class_name}: model_type={model_type!r} is not allowed{close}: {', '.join(NETWORKS)}")
    network = dict(NETWORKS[model_type])
    for name, value in kwargs.items():
        if name in wrapper:
            wrapper[name] = value
        elif name in network:
            network[name] = value
        else:
            known = [*wrapper, *network]
            raise InputError(
                f"{class_name} with {model_type}: unknown argument {name!r}{nearest(str(name), known)}; "
                f"there are: {', '.join(known)}"
            )
    for name, value in wrapper.items():
        if value is None:
            raise InputError(f"{class_name}: argument {name!r} is missing")
    for name, value in {**wrapper, **network}.items():
        _check_plain(class_name, name, value)
    return wrapper, network


def _check_plain(class_name: str, name: str, value: object) -> None:
    items = value if isinstance(value, (list, tuple)) else [value]
    if len(items) > 64 or not all(isinstance(item, (int, float, str)) for item in items):
        raise InputError(f"{class_name}: {name} is not a plain value or a short list of them")
    if name in _LARGEST and not (type(value) is int and abs(value) <= _LARGEST[name]):
        shown = value if isinstance(value, (float, str)) else "a larger one"
        raise InputError(f"{class_name}: {name}={shown!r} is not allowed: a whole number, at most {_LARGEST[name]}")
    if name == "channel_mult" and not all(type(item) is int and item <= 64 for item in items):
        raise InputError(f"{class_name}: {name}={value!r} is not allowed: whole numbers, at most 64")


def official_config(class_name: str, kwargs: Mapping[str, Any]) -> DenoiserConfig:
    """The configuration of an official network. Says only what differs from what a kind and Table 1 say.

    Attention at a resolution that no level has does nothing in the original; it is left out here, where it would be
    refused. ``use_fp16`` says how the original runs on a GPU, not what the network is, and has no place in it.
    """
    wrapper, network = official_arguments(class_name, kwargs)
    kind = _KINDS[class_name]
    preconditioning: dict[str, Any] = {"kind": kind}
    for name, default in WRAPPERS[class_name].items():
        if name not in (*_COMMON, "model_type") and wrapper[name] != default:
            preconditioning[_RENAMED.get(name, name)] = wrapper[name]
    config: dict[str, Any] = {
        "img_resolution": wrapper["img_resolution"],
        "img_channels": wrapper["img_channels"],
        "label_dim": wrapper["label_dim"],
        **{name: tuple(value) if isinstance(value, list) else value for name, value in network.items()},
    }
    if isinstance(config["attn_resolutions"], tuple) and isinstance(config["channel_mult"], tuple):
        levels = [wrapper["img_resolution"] >> level for level in range(len(config["channel_mult"]))]
        config["attn_resolutions"] = tuple(res for res in config["attn_resolutions"] if res in levels)
    if wrapper["model_type"] == "DhariwalUNet":
        config["kind"] = "adm"
    else:
        choices = {name: config.pop(name) for name in _DDPMPP}
        ncsnpp = choices == _NCSNPP
        config["kind"] = "ncsnpp" if ncsnpp else "ddpmpp"
        if not ncsnpp:
            config |= {name: value for name, value in choices.items() if value != _DDPMPP[name]}
    return validate(DenoiserConfig, {"network": config, "preconditioning": preconditioning}, class_name)
