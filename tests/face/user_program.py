"""What a user writes: the whole face, in types. `test_typing.py` holds `mypy --strict` to it; nothing runs it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

import edm_ray as edm


class ConvNet(nn.Module):
    """A network of one's own."""

    img_resolution, img_channels, label_dim = 8, 1, 10

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.label = nn.Linear(11, width)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(
        self,
        x: torch.Tensor,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        told = self.label(torch.cat([noise_labels[:, None], class_labels], 1))[:, :, None, None]
        out: torch.Tensor = self.last(nn.functional.silu(self.first(x) + told))
        return out


@dataclass(frozen=True, kw_only=True)
class Ddim(edm.Sampler):
    """A sampler of one's own."""

    eta: float = 0.0

    def run(
        self, D: edm.AtLevel, x: torch.Tensor, levels: list[float], path: edm.Path, noise: edm.Noise
    ) -> torch.Tensor:
        for now, after in itertools.pairwise(levels):
            x = x + (after - now) / now * (x - D(x, now))
        return x


def gaussian(x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
    return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


class Halved(edm.Guided):
    """A denoiser of one's own, from one that there is."""


def train(out: str) -> edm.ModelDenoiser:
    data = edm.prepare("digits", f"{out}/data", on=edm.Local())
    config = replace(edm.preset("digits", data), total_kimg=1.0)
    own = edm.train(data, config, f"{out}/own", network=ConvNet(), on_tick=lambda row: print(row["loss"]))
    edm.train(data.uri, "digits", f"{out}/run", on=edm.Ray(workers=8, device="cuda"), overrides=["optimizer.lr=1e-3"])
    return own


def sample(model: edm.ModelDenoiser) -> torch.Tensor:
    sampler: edm.Sampler = edm.Heun(num_steps=18, s_churn=40, s_tmin=0.05, s_tmax=50, s_noise=1.003)
    flat = edm.sampler(solver="heun", num_steps=18, s_churn=40)
    assert flat.nfe == sampler.nfe and edm.sampler(**flat.to_dict()) == flat
    levels: list[float] = sampler.noise_levels(model)
    assert levels and sampler.needs_noise(model) and sampler.effective(model).nfe
    seeds = torch.arange(4)
    latents = edm.image_noise(seeds, "latents", model.shape)(0)
    labels = edm.one_hot_labels(seeds, 10)
    images = edm.sample(model, latents, sampler, labels, edm.image_noise(seeds, "churn", model.shape))
    images = edm.sample(gaussian, latents, Ddim(num_steps=10, eta=0.0)) + images
    for denoiser in denoisers(model):
        images = edm.sample(denoiser, latents, edm.RK45(), labels)
    pixels: torch.Tensor = edm.generate(model, range(4), flat, labels="balanced")
    return pixels


def denoisers(model: edm.ModelDenoiser) -> list[edm.Denoiser]:
    """All of them fulfil the protocol."""
    ideal = edm.IdealDenoiser(torch.zeros(2, 1, 8, 8))
    return [model, ideal, edm.EDM(ConvNet(), sigma_data=0.5), edm.VP(ConvNet()), Halved(model, ideal, weight=1.5)]


def measure(model: edm.ModelDenoiser, out: str) -> float:
    reference = edm.reference(f"{out}/data/train", extractor="digits", out=f"{out}/reference")
    result = edm.evaluate(model, reference, edm.Heun(num_steps=18), num=1000, on=edm.Ray(workers=8, device="cuda"))
    again = edm.evaluate(f"{out}/run/model", [f"{out}/reference"], Ddim(), num=1000, on=edm.Local(), metrics="fid,kid")
    for row in again.rows():
        print(row.metric)
    found = edm.sweep(
        model, reference, "tune_spaces/digits.yaml", f"{out}/sweep", plan=edm.sweep_plan("race", chunk_size=100)
    )
    best: edm.Sampler = found.best
    gain = found.against_deterministic
    print(best, gain and gain.gap, found.table[0]["fid"])
    images = np.zeros((200, 1, 8, 8), np.uint8)
    return float(edm.fid(images, reference)) + result.fid.se + float(edm.fid("folder", torch.from_numpy(images)))


def models(network: ConvNet, out: str) -> edm.ModelDenoiser:
    place: str = edm.save_model(out, edm.EDM(network, sigma_data=0.5), shape=(1, 8, 8), class_names=["0", "1"])
    edm.import_model("edm-cifar10-32x32-cond-vp.pkl", f"{out}/imported")
    edm.write_dataset(np.zeros((9, 1, 8, 8), np.uint8), None, f"{out}/data")
    objective = edm.objective("edm", p_mean=-1.2)
    print(objective, edm.open_dataset(f"{out}/data").rows)
    return edm.load_model(place, network=network)
