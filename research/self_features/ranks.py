"""Does `--extractor self` rank samplers as other features do? On digits, and on crops of photographs.

    python -m research.self_features.ranks CACHE [--num 2000] [--write]

108 samplers of a small denoiser (that of the landscapes in research/race, trained here in a minute) make ``num`` images
each from the same seeds; the FID of each is taken with every extractor, and the extractors' rankings are compared
(Spearman, Kendall). Others than `self`: the same network trained as a classifier, with two seeds; a residual network
of another architecture, trained as a classifier; a perceptron, trained as a classifier, whitened; the first 64
principal components of the pixels; an untrained network. About 15 minutes on one core. ``--write`` puts the tables into
README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from torch import nn

from edm_ray.diffusion.preconditioning import EDM
from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.evaluation.extractors.self_trained import read_self_trained, train_self
from edm_ray.evaluation.extractors.trained import FeatureNetwork, class_loss, train
from edm_ray.generation.generate import generate
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.seeding import stream_key, uniform
from research.race.landscape import SPECS, Net, adam, load_data, train_denoiser, train_features

PAGE = Path(__file__).with_name("README.md")
Features = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [B, 1, S, S] -> [B, d]."""
SETS = {"digits": "8x8 digits", "crops": "16x16 crops of two photographs"}
LABELS = {
    "self": "`self`, with classes",
    "self, unlabelled": "`self`, without classes",
    "classifier": "classifier, the same network",
    "classifier 2": "the same, another seed",
    "residual": "classifier, residual network",
    "perceptron": "classifier, perceptron, whitened",
    "pixels": "64 principal components of pixels",
    "untrained": "untrained network",
}
PARTS = {"all": "all 108", "best half": "the best 54 by the residual network"}


def samplers() -> list[Sampler]:
    """108 of them: six solvers at 4 to 18 steps and two rho; Heun with churn; Heun with other ends of the noise."""
    plain = itertools.product(("euler", "heun", "dpmpp_2m", "deis", "unipc", "ipndm"), (4, 6, 9, 13, 18), (3.0, 7.0))
    made = [
        sampler(solver=solver, num_steps=(count + 1) // 2 if solver == "heun" else count, rho=rho)
        for solver, count, rho in plain
    ]
    for churn, noise, count in itertools.product((2.0, 5.0, 10.0, 20.0), (0.9, 1.0, 1.007), (4, 8, 14)):
        made.append(sampler(num_steps=count, s_churn=min(churn, 0.41 * count), s_noise=noise))
    for high, low, count in itertools.product((10.0, 40.0), (0.002, 0.02, 0.1), (5, 9)):
        made.append(sampler(num_steps=count, sigma_max=high, sigma_min=low))
    return made


class Residual(nn.Module):
    """Another architecture: strides, group normalisation, SiLU, residual blocks, average pooling; 96 features."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        widths = (24, 48, 96)
        self.first = nn.Conv2d(1, widths[0], 3, padding=1)
        self.blocks, self.down = nn.ModuleList(), nn.ModuleList()
        for width, after in zip(widths, (*widths[1:], widths[-1]), strict=True):
            self.blocks.append(nn.Sequential(*_half(width), *_half(width)))
            self.down.append(nn.Conv2d(width, after, 3, stride=2, padding=1))
        self.logits = nn.Linear(widths[-1], outputs)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.first(pixels.float() / 127.5 - 1)
        for block, down in zip(self.blocks, self.down, strict=True):
            x = down(x + block(x))
        return nn.functional.silu(x).mean((2, 3))


def _half(width: int) -> list[nn.Module]:
    return [nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]


def residual(images: torch.Tensor, labels: torch.Tensor) -> Features:
    torch.manual_seed(11)
    network = Residual(int(labels.max()) + 1)

    def loss(step: int) -> torch.Tensor:
        where = torch.arange(64 * step, 64 * step + 64)
        rows = (uniform(stream_key("residual rows"), where, 1)[:, 0] * len(images)).long()
        return nn.functional.cross_entropy(network.logits(network(images[rows])), labels[rows])

    for _ in adam(network.parameters(), loss, 900, 2e-3):
        pass
    return network.eval()


def classifier(images: torch.Tensor, labels: torch.Tensor, seed: int) -> Features:
    def network() -> FeatureNetwork:
        return FeatureNetwork(1, images.shape[-1], int(labels.max()) + 1)

    state = train(network, class_loss(images, labels), len(images), max(1, 40_000 // len(images)), "research", seed)
    trained = network()
    trained.load_state_dict(state)
    return trained.eval()


def own(images: torch.Tensor, labels: torch.Tensor, classes: int, path: Path) -> Features:
    path.write_bytes(train_self(images, labels, classes))
    return read_self_trained(path)[0].eval()


def pixels(images: torch.Tensor) -> Features:
    _, vectors = torch.linalg.eigh(torch.cov(images.flatten(1).double().T / 127.5))
    return lambda x: x.flatten(1).double() / 127.5 @ vectors[:, -64:]


def fid(a: np.ndarray, mean: np.ndarray, root: np.ndarray, trace: float) -> float:
    """Of features [n, d] against a mean and a root of a covariance."""
    covariance = np.cov(a.T)
    values = np.linalg.eigvalsh(root.T @ covariance @ root)
    gap = a.mean(0) - mean
    return float(gap @ gap + np.trace(covariance) + trace - 2 * np.sqrt(np.maximum(values, 0)).sum())


def fids(extract: Features, real: torch.Tensor, made: np.ndarray) -> list[float]:
    """Of each sampler's images: made uint8 [samplers, n, 1, S, S]."""

    def features(images: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return torch.cat([extract(part) for part in images.split(500)]).double().numpy()

    of_real = features(real)
    covariance = np.cov(of_real.T)
    values, vectors = np.linalg.eigh(covariance)
    root, trace = vectors * np.sqrt(np.maximum(values, 0)), float(np.trace(covariance))
    return [fid(features(torch.from_numpy(images)), of_real.mean(0), root, trace) for images in made]


class Bench:
    """One picture set: real images, a denoiser, its samplers' images, FIDs by extractor. A stopped run resumes."""

    def __init__(self, name: str, cache: Path, num: int) -> None:
        self.name, self.num, self.folder = name, num, cache / f"{name}-{num}"
        self.folder.mkdir(parents=True, exist_ok=True)
        scaled, self.labels, _ = load_data(SPECS[name].data)
        self.scaled, self.real = scaled, ((scaled + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        self.file = self.folder / "fids.json"
        self.known: dict[str, list[float]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def images(self) -> np.ndarray:
        path = self.folder / "images.npy"
        if not path.exists():
            denoiser: EDM = train_denoiser(SPECS[self.name], self.scaled)
            assert isinstance(denoiser.model, Net)
            model, seeds = ModelDenoiser(denoiser, denoiser.model), torch.arange(self.num)
            np.save(path, np.stack([generate(model, seeds, each, micro_batch=500).numpy() for each in samplers()]))
            print(f"{self.name}: images of {len(samplers())} samplers", flush=True)
        made: np.ndarray = np.load(path)
        return made

    def extractors(self) -> dict[str, Callable[[], Features]]:
        real, labels, classes = self.real, self.labels, int(self.labels.max()) + 1
        path = self.folder / "self"

        def perceptron() -> Features:
            flat = train_features(SPECS[self.name], self.scaled, labels)[0]
            return lambda x: flat(x.flatten(1).float() / 127.5 - 1)

        def untrained() -> Features:
            torch.manual_seed(7)
            return FeatureNetwork(1, real.shape[-1], 2).eval()

        return {
            "self": lambda: own(real, labels, classes, path),
            "self, unlabelled": lambda: own(real, labels, 0, path),
            "classifier": lambda: classifier(real, labels, 0),
            "classifier 2": lambda: classifier(real, labels, 1),
            "residual": lambda: residual(real, labels),
            "perceptron": perceptron,
            "pixels": lambda: pixels(real),
            "untrained": untrained,
        }

    def measure(self) -> dict[str, list[float]]:
        for name, make in self.extractors().items():
            if name not in self.known:
                self.known[name] = fids(make(), self.real, self.images())
                self.file.write_text(json.dumps(self.known))
                low, high = min(self.known[name]), max(self.known[name])
                print(f"{self.name}: {name}: FIDs {low:.3g} to {high:.3g}", flush=True)
        return self.known


def table(found: dict[str, list[float]], part: str) -> str:
    """Spearman / Kendall of `self` with each other extractor."""
    order = np.argsort(found["residual"])
    rows = order if part == "all" else order[: len(order) // 2]
    names = [name for name in LABELS if name in found]
    lines = ["| | `self`, with classes | `self`, without classes | classifier, residual network |", "|---|---|---|---|"]
    for name in names:
        cells = []
        for column in ("self", "self, unlabelled", "residual"):
            a, b = np.array(found[name])[rows], np.array(found[column])[rows]
            same = name == column
            cells.append("-" if same else f"{spearmanr(a, b)[0]:.2f} / {kendalltau(a, b)[0]:.2f}")
        lines.append(f"| {LABELS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def put(page: Path, title: str, text: str) -> None:
    """Between its marks in a page."""
    begin, end = f"<!-- {title} -->", f"<!-- end of {title} -->"
    head, rest = page.read_text().split(begin, 1)
    page.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, about in SETS.items():
        found = Bench(name, args.cache, args.num).measure()
        for part, which in PARTS.items():
            text = table(found, part)
            print(f"\n{about}, {which}, n={args.num}: Spearman / Kendall\n{text}")
            if args.write:
                put(PAGE, f"{name}, {part}", text)


if __name__ == "__main__":
    main()
