"""A network of the user's own: what it must be so that it trains and resumes as ours do.

A resumed run gives the same bits, and any number of workers the same images, only if every random number of a step is
a function of an image's position. So ordinary dropout modules are keyed here, and whatever else draws from torch's
global generator in training mode is refused.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from edm_ray.config.network import OwnNetwork
from edm_ray.errors import InputError, require
from edm_ray.networks.dropout import key_dropout, words_needed
from edm_ray.networks.layers import Dropout


def fit_own(network: nn.Module, config: OwnNetwork) -> nn.Module:
    """The same module, its `nn.Dropout` layers replaced by keyed ones of the same p (their masks differ from torch's).

    Raises InputError where its ``label_dim`` is not the configuration's, where it does not take and return images as
    `Preconditioned` says, or where it draws from torch's generator otherwise: functional dropout, Dropout2d, dropout
    inside attention or recurrent layers, noise. One image goes through a copy on the CPU to find out.
    """
    name = config.class_path or type(network).__qualname__
    label_dim = int(getattr(network, "label_dim", 0))
    require(label_dim == config.label_dim, "network.label_dim", config.label_dim, f"{name} has label_dim {label_dim}")
    _key_dropout_modules(network)
    if all(tensor.device.type != "meta" for tensor in [*network.parameters(), *network.buffers()]):
        _try(copy.deepcopy(network).cpu().train(), config, name)
    return network


def _key_dropout_modules(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in list(module._modules.items()):  # named_children would name a shared module once
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))


def _try(network: nn.Module, config: OwnNetwork, name: str) -> None:
    """One image through the network in training mode."""
    size, channels = config.img_resolution, config.img_channels
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        dtype = next((parameter.dtype for parameter in network.parameters()), torch.float32)
        x, noise_labels = torch.zeros(1, channels, size, size, dtype=dtype), torch.zeros(1, dtype=dtype)
        labels, augment = (
            torch.zeros(1, width, dtype=dtype) if width else None for width in (config.label_dim, config.augment_dim)
        )
        key_dropout(network, torch.zeros(1, words_needed(network), dtype=torch.int64))
        before = torch.get_rng_state()
        try:
            out = network(x, noise_labels, labels, augment)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{name}: does not take network(x, noise_labels, class_labels, augment_labels) with x of shape "
                f"{tuple(x.shape)}: {' '.join(str(error).split())}"
            ) from error
        drew = not torch.equal(torch.get_rng_state(), before)
    found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if not isinstance(found, tuple) or len(found) != 4 or found[1] < channels or found[2:] != x.shape[2:]:
        raise InputError(f"{name}: returns {found} for images of shape {tuple(x.shape)}, expected the same shape")
    if drew:
        raise InputError(
            f"{name}: draws from torch's global generator in training mode, so a resumed run would not be the same; "
            "allowed are torch.nn.Dropout modules, which are keyed by image, and edm_ray.networks.layers.Dropout"
        )
