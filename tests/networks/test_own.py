"""A network of the user's own: what it must be, and that dropout in it is keyed or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import OwnNetwork
from edm_ray.config.preconditioning import IDDPMPreconditioning
from edm_ray.diffusion.preconditioning import EDM
from edm_ray.errors import InputError
from edm_ray.networks import build_denoiser
from edm_ray.networks.cost import network_cost
from edm_ray.networks.dropout import key_dropout, words_needed

CONFIG = DenoiserConfig(network=OwnNetwork(img_resolution=8, img_channels=1, class_path="mine.Own"))


class Own(nn.Module):
    def __init__(self, *layers: nn.Module, channels: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Conv2d(4, channels, 3, padding=1))

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        return self.net(x + noise_labels.reshape(-1, 1, 1, 1))


def test_any_module_is_preconditioned_and_without_label_dim_it_is_unconditional() -> None:
    denoiser = EDM(Own(), sigma_data=0.5)
    x = torch.randn(2, 1, 8, 8)
    assert denoiser(x, torch.tensor(1.0), torch.eye(3)[:2]).shape == x.shape
    assert torch.equal(denoiser.round_sigma(torch.tensor(1.3)), torch.tensor(1.3))


def test_the_module_that_is_passed_is_the_one_inside_with_its_weights() -> None:
    network = Own()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    denoiser = build_denoiser(CONFIG, network=network)
    assert denoiser.model is network
    assert {f"model.{name}" for name in before} == set(denoiser.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_without_the_module_the_error_says_how_to_pass_it() -> None:
    for build in (build_denoiser, network_cost):
        with pytest.raises(InputError, match=r"your own class mine.Own: pass .*edm.load_model\(uri, network=module\)"):
            build(CONFIG)
    with pytest.raises(InputError, match=r"network.kind='ddpmpp' is built here"):
        build_denoiser(DenoiserConfig(), network=Own())


def test_ordinary_dropout_modules_are_keyed_by_image() -> None:
    denoiser = build_denoiser(CONFIG, network=Own(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.2)))).train()
    assert words_needed(denoiser) == 4
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor(1.0)
    words = torch.arange(8).reshape(2, 4)
    key_dropout(denoiser, words)
    state = torch.get_rng_state()
    both = denoiser(x, sigma)
    assert torch.equal(torch.get_rng_state(), state)
    key_dropout(denoiser, words[1:])
    torch.testing.assert_close(denoiser(x[1:], sigma), both[1:])
    key_dropout(denoiser, words[1:] + 1000)
    assert not torch.allclose(denoiser(x[1:], sigma), both[1:])


@pytest.mark.parametrize("layer", [nn.Dropout2d(0.5), nn.RReLU(), nn.AlphaDropout(0.5)])
def test_other_random_layers_are_refused_and_leave_the_global_generator_alone(layer: nn.Module) -> None:
    network = Own(layer)
    state = torch.get_rng_state()
    with pytest.raises(InputError, match=r"mine.Own: draws from torch's global generator in training mode"):
        build_denoiser(CONFIG, network=network)
    assert torch.equal(torch.get_rng_state(), state)


def test_functional_dropout_is_refused_too() -> None:
    class Functional(Own):
        def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
            return nn.functional.dropout(super().forward(x, noise_labels), 0.1, self.training)

    with pytest.raises(InputError, match="draws from torch's global generator"):
        build_denoiser(CONFIG, network=Functional())


def test_a_module_that_does_not_fit_is_refused_in_words() -> None:
    class Short(Own):
        def forward(self, x, noise_labels):
            return x

    class Pooled(Own):
        def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
            return x.mean((2, 3))

    class Labelled(Own):
        label_dim = 3

    for network, says in (
        (Short(), r"does not take network\(x, noise_labels, class_labels, augment_labels\)"),
        (Pooled(), r"returns \(1, 1\) for images of shape \(1, 1, 8, 8\)"),
        (Labelled(), r"network.label_dim=0 is not allowed: mine.Own has label_dim 3"),
    ):
        with pytest.raises(InputError, match=says):
            build_denoiser(CONFIG, network=network)
    iddpm = DenoiserConfig(network=CONFIG.network, preconditioning=IDDPMPreconditioning())
    assert build_denoiser(iddpm, network=Own(channels=2))(torch.zeros(1, 1, 8, 8), torch.tensor(1.0)).shape[1] == 1


def test_trying_the_module_leaves_its_buffers_and_mode_as_they_were() -> None:
    network = Own(nn.BatchNorm2d(4)).eval()
    build_denoiser(CONFIG, network=network)
    assert not network.training and int(network.net[1].num_batches_tracked) == 0
