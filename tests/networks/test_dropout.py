"""Dropout masks by key: right in law, and a function of the image alone."""

from __future__ import annotations

import pytest
import torch

from edm_ray.config.network import NETWORKS
from edm_ray.networks.build import build_network
from edm_ray.networks.dropout import dropout_layers, key_dropout, keyed_mask, words_needed
from edm_ray.networks.layers import LabelDropout
from edm_ray.seeding import stream_key, words

TINY = NETWORKS(
    img_resolution=8,
    model_channels=16,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(),
    dropout=0.3,
    label_dim=4,
    label_dropout=0.2,
)


def _keys(count: int, layer: int = 0) -> torch.Tensor:
    pair = words(stream_key("test"), torch.arange(count), 2 * layer + 2)[:, -2:]
    return (pair[:, 0] << 32) | pair[:, 1]


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


@pytest.mark.parametrize("p", [0.05, 0.13, 0.5])
def test_the_share_dropped_is_p_and_the_mean_is_kept(p: float) -> None:
    mask = keyed_mask(torch.empty(1000, 8, 10, 10), _keys(1000), p)
    se = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs(float((mask == 0).double().mean()) - p) < 4 * se + 2**-17
    assert abs(float(mask.double().mean()) - 1) < 4 * se / (1 - p) + 1e-7
    assert mask.unique().numel() == 2


def test_masks_of_neighbouring_elements_images_and_layers_are_uncorrelated() -> None:
    x = torch.empty(2000, 512)
    mask, other = keyed_mask(x, _keys(2000), 0.13), keyed_mask(x, _keys(2000, 1), 0.13)
    bound = 4 / mask.numel() ** 0.5
    for lag in (1, 2, 3, 4, 5, 64):
        assert abs(_correlation(mask[:, :-lag], mask[:, lag:])) < bound
    assert abs(_correlation(mask[:-1], mask[1:])) < bound and abs(_correlation(mask, other)) < bound
    # Sums over an image scatter as independent draws do.
    dropped = (mask == 0).double().sum(1)
    assert abs(float(dropped.var()) / (512 * 0.13 * 0.87) - 1) < 4 * (2 / 2000) ** 0.5


def test_an_image_has_the_same_mask_in_any_batch() -> None:
    x = torch.empty(9, 6, 5, 5)
    whole = keyed_mask(x, _keys(9), 0.3)
    assert torch.equal(whole[4:7], keyed_mask(x[4:7], _keys(9)[4:7], 0.3))


def test_labels_are_dropped_by_key_with_probability_p() -> None:
    layer = LabelDropout(0.2)
    layer.keys = _keys(20_000)
    out = layer.train()(torch.ones(20_000, 3))
    assert abs(float((out[:, 0] == 0).double().mean()) - 0.2) < 4 * (0.16 / 20_000) ** 0.5
    layer.keys = layer.keys[5:9]
    assert torch.equal(layer(torch.ones(4, 3)), out[5:9])


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_network_in_training_gives_an_image_the_same_output_in_any_batch(channels_last: bool) -> None:
    network = build_network(TINY).train()
    with torch.no_grad():
        for parameter in network.parameters():  # initial weights of zero would hide the masks
            parameter.add_(0.05)
    x, noise = torch.randn(5, 3, 8, 8), torch.randn(5)
    if channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    labels = torch.eye(4)[[0, 1, 2, 3, 0]]
    drawn = words(stream_key("dropout"), torch.arange(5), words_needed(network))
    key_dropout(network, drawn)
    whole = network(x, noise, labels)
    assert torch.equal(whole, network(x, noise, labels))
    key_dropout(network, drawn[1:3])
    assert torch.allclose(network(x[1:3], noise[1:3], labels[1:3]), whole[1:3], atol=1e-5)
    key_dropout(network, drawn.flip(0))
    assert not torch.allclose(network(x, noise, labels), whole, atol=1e-3)
    key_dropout(network, None)
    assert all(layer.keys is None for layer in dropout_layers(network))


def test_a_keyed_network_compiles_without_graph_breaks() -> None:
    network = build_network(TINY).train()
    key_dropout(network, words(stream_key("dropout"), torch.arange(2), words_needed(network)))
    inputs = (torch.randn(2, 3, 8, 8), torch.randn(2), torch.eye(4)[:2])
    expected = network(*inputs)
    assert torch.allclose(torch.compile(network, backend="eager", fullgraph=True)(*inputs), expected, atol=1e-6)
