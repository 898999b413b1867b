"""From a configuration to a network with its initial weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import ADM, NetworkConfig, OwnNetwork, SongNetwork
from edm_ray.config.preconditioning import (
    EDMPreconditioning,
    IDDPMPreconditioning,
    PreconditioningConfig,
    VEPreconditioning,
    VPPreconditioning,
)
from edm_ray.diffusion.preconditioning import EDM, IDDPM, PRECONDITIONERS, VE, VP, Preconditioned
from edm_ray.errors import InputError, require
from edm_ray.networks.dhariwal import DhariwalUNet
from edm_ray.networks.layers import Conv2d, Linear
from edm_ray.networks.own import fit_own
from edm_ray.networks.song import SongUNet
from edm_ray.seeding import stream_key


def build_network(config: NetworkConfig, seed: int = 0, out_channels: int | None = None) -> nn.Module:
    """F_theta on torch's default device: forward(x, noise_labels, class_labels=None, augment_labels=None).

    The weights are a function of ``config`` and ``seed`` alone: they are drawn on the CPU whatever the device, and the
    global generators are left as they were. Under ``torch.device("meta")`` there is nothing to draw.
    out_channels: channels of the output where they are not those of the images.
    Raises InputError for sizes that make no network, and for one that is the user's own class.
    """
    device = torch.get_default_device()
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device.type == "meta" else "cpu"):
        # Not torch.manual_seed: that would reseed the CUDA generators too.
        torch.default_generator.manual_seed(stream_key("weights", seed) >> 1)
        network = _construct(config, config.img_channels if out_channels is None else out_channels)
    return network.to(device)


def _construct(config: NetworkConfig, out_channels: int) -> nn.Module:
    if isinstance(config, OwnNetwork):
        raise InputError(
            f"this model's network is your own class {config.class_path or '(no name given)'}: pass the module, "
            "edm.load_model(uri, network=module) or edm.train(..., network=module)"
        )
    try:
        if isinstance(config, ADM):
            return DhariwalUNet(config, out_channels)
        assert isinstance(config, SongNetwork), config
        return SongUNet(config, out_channels)
    except InputError as error:
        if str(error).startswith("network.") or not isinstance(config, (ADM, SongNetwork)):
            raise
        raise InputError(
            f"network.model_channels={config.model_channels!r} with "
            f"network.channel_mult={config.channel_mult!r} is not allowed: {error}"
        ) from None


def build_denoiser(config: DenoiserConfig, seed: int = 0, network: nn.Module | None = None) -> Preconditioned:
    """The preconditioned denoiser D around ``build_network`` with the same ``seed``; the network is ``.model``.

    network: the user's own module, where the configuration says ``network.kind: own``; its weights stay as they are.
    Raises InputError where it is missing, not asked for, or not what the configuration says (`networks.own`).
    """
    kind = config.preconditioning.kind
    require(kind in PRECONDITIONERS, "preconditioning.kind", kind, ", ".join(PRECONDITIONERS))
    if network is None:
        # iDDPM networks also predict a variance, in as many channels again, which the denoiser does not use.
        out_channels = config.network.img_channels * (2 if kind == "iddpm" else 1)
        return precondition(build_network(config.network, seed, out_channels), config.preconditioning)
    if not isinstance(config.network, OwnNetwork):
        raise InputError(f"network.kind={config.network.kind!r} is built here; a module of your own needs kind 'own'")
    return precondition(fit_own(network, config.network), config.preconditioning)


def on_device(denoiser: Preconditioned, device: torch.device) -> Preconditioned:
    """The same, moved. On a GPU the network's weights lie in channels_last, and so do its activations: tensor cores
    take them as they are. A module of the user's own keeps its layout."""
    moved: Preconditioned = denoiser.to(device)
    if device.type == "cuda" and isinstance(moved.model, (SongUNet, DhariwalUNet)):
        moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def with_weights_in(denoiser: Preconditioned, dtype: torch.dtype) -> Preconditioned:
    """A copy whose convolutions and products have their weights in 16 bits: the same bits as under autocast, which
    would round them at every call."""
    twin = copy.deepcopy(denoiser)
    for module in twin.modules():
        if isinstance(module, (Conv2d, Linear)) and module.weight is not None:
            module.weight.data = module.weight.data.to(dtype)
    return twin


def config_of(denoiser: Preconditioned, shape: tuple[int, int, int] | None = None) -> DenoiserConfig:
    """The configuration that a preconditioned network was built with, or could have been: the inverse of
    `build_denoiser`. shape: (C, H, W) of its images, where a module of the user's own does not say it itself."""
    return DenoiserConfig(network=_network_config(denoiser.model, shape), preconditioning=_preconditioning_of(denoiser))


def _network_config(network: nn.Module, shape: tuple[int, int, int] | None) -> NetworkConfig:
    if isinstance(network, (SongUNet, DhariwalUNet)):
        return network.config
    channels, resolution = getattr(network, "img_channels", None), getattr(network, "img_resolution", None)
    if shape is not None:
        channels, resolution = shape[0], shape[2]
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    if channels is None or resolution is None:
        raise InputError(f"{name}: does not say img_channels and img_resolution; give shape=(C, H, W) of its images")
    sizes = {key: int(getattr(network, key, 0)) for key in ("label_dim", "augment_dim")}
    return OwnNetwork(img_resolution=int(resolution), img_channels=int(channels), class_path=name, **sizes)


def _preconditioning_of(denoiser: Preconditioned) -> PreconditioningConfig:
    match denoiser:
        case EDM():
            high = None if math.isinf(denoiser.sigma_max) else denoiser.sigma_max
            return EDMPreconditioning(sigma_data=denoiser.sigma_data, sigma_min=denoiser.sigma_min, sigma_max=high)
        case VP():
            s = denoiser.schedule
            return VPPreconditioning(
                beta_d=s.beta_d, beta_min=s.beta_min, epsilon_t=s.epsilon_t, num_train_steps=denoiser.steps
            )
        case VE():
            return VEPreconditioning(sigma_min=denoiser.schedule.sigma_min, sigma_max=denoiser.schedule.sigma_max)
        case IDDPM():
            g = denoiser.grid
            return IDDPMPreconditioning(num_train_steps=g.num_train_steps, c_1=g.c_1, c_2=g.c_2)
    raise InputError(f"{type(denoiser).__qualname__}: only edm.EDM, VP, VE and IDDPM can be kept in a model directory")


def precondition(network: nn.Module, config: PreconditioningConfig) -> Preconditioned:
    """The preconditioning that the configuration says, around any network."""
    match config:
        case EDMPreconditioning():
            low, high = config.noise_range
            return EDM(network, sigma_data=config.sigma_data, sigma_min=low, sigma_max=high)
        case VPPreconditioning():
            return VP(network, config.schedule, config.num_train_steps)
        case VEPreconditioning():
            return VE(network, config.schedule)
        case IDDPMPreconditioning():
            return IDDPM(network, config.grid)
    raise AssertionError(config)
