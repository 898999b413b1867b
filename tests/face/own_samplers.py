"""Samplers of a user's own, in a module that workers can import too. `script.py`-like classes are made by the tests."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

import edm_ray as edm


@dataclass(frozen=True, kw_only=True)
class CopiedEuler(edm.Sampler):
    """Euler's method, line for line: D is asked at the noise level, and the derivative is (x - D) / sigma."""

    def run(
        self, D: edm.AtLevel, x: torch.Tensor, levels: list[float], path: edm.Path, noise: edm.Noise
    ) -> torch.Tensor:
        for now, after in itertools.pairwise(levels):
            x = x + (after - now) * ((x - D(x, now)) / now)
        return x


@dataclass(frozen=True, kw_only=True)
class NoisyDDIM(edm.Sampler):
    """DDIM with noise, Song, Meng and Ermon 2021, equation 16."""

    solver = "tests_noisy_ddim"
    follows_schedule = False

    eta: float = 1.0

    def run(
        self, D: edm.AtLevel, x: torch.Tensor, levels: list[float], path: edm.Path, noise: edm.Noise
    ) -> torch.Tensor:
        for i, (now, after) in enumerate(itertools.pairwise(levels)):
            added = self.eta * after * math.sqrt(1 - (after / now) ** 2)
            down = math.sqrt(after**2 - added**2)
            x = x + (down - now) * ((x - D(x, now)) / now)
            x = x + added * noise(i) if added else x
        return x

    def needs_noise(self, denoiser: object = None) -> bool:
        return self.eta > 0
