"""Every sampler in NumPy float64, written from formulas: nothing of the package but the names of settings.

The data are N(MEAN, SD^2), independent pixels, so the denoiser is one line.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp

MEAN, SD = 0.3, 0.5
DEFAULT_RANGES = {"edm": (0.002, 80.0), "ve": (0.02, 100.0), "iddpm": (0.002, 81.0)}


def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
    return (SD**2 * x + sigma**2 * MEAN) / (SD**2 + sigma**2)


def score(x: np.ndarray, sigma: float) -> np.ndarray:
    return (MEAN - x) / (SD**2 + sigma**2)


def vp_sigma(t: Any, beta_d: float, beta_min: float) -> Any:
    return np.sqrt(np.expm1(0.5 * beta_d * t**2 + beta_min * t))


@functools.cache
def iddpm_u() -> np.ndarray:
    """abar and its ratios in float32, as the models on this grid were trained; the recursion in float64."""
    m = 1000
    abar = (0.5 * math.pi * torch.arange(m + 1) / m / 1.008).sin() ** 2
    u = np.zeros(m + 1)
    for j in range(m, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / float(max(abar[j - 1] / abar[j], torch.tensor(0.001))) - 1)
    return u


class Problem:
    """Noise levels, sigma(t) and s(t) of settings, from Table 1."""

    def __init__(self, s: Any) -> None:
        n, eps = s.num_steps, s.epsilon_s
        low, high = DEFAULT_RANGES.get(s.discretization) or (vp_sigma(eps, 19.9, 0.1), vp_sigma(1.0, 19.9, 0.1))
        bottom, top = np.log1p(low**2), np.log1p(high**2)
        bd = 2 * (bottom / eps - top) / (eps - 1)
        bm = top - bd / 2
        i = np.arange(n) / (n - 1)
        if s.discretization == "vp":
            self.levels = vp_sigma(1 + i * (eps - 1), bd, bm)
        elif s.discretization == "ve":
            self.levels = np.sqrt(high**2 * (low**2 / high**2) ** i)
        elif s.discretization == "iddpm":
            u = iddpm_u()
            u = u[(u >= low) & (u <= high)]
            self.levels = u[np.rint((len(u) - 1) / (n - 1) * np.arange(n)).astype(int)]
        else:
            self.levels = edm_levels(low, high, n, s.rho)
        self.range = low, high
        if s.schedule == "vp":
            self.sigma: Callable = lambda t: vp_sigma(t, bd, bm)
            self.rate: Callable = lambda t: 0.5 * (bm + bd * t) * (self.sigma(t) + 1 / self.sigma(t))
            # The root of the quadratic equation that does not cancel.
            root = lambda log: np.sqrt(bm**2 + 2 * bd * log)  # noqa: E731
            self.time: Callable = lambda v: (
                2 * np.log1p(v**2) / (root(np.log1p(v**2)) + bm) if bm >= 0 else (root(np.log1p(v**2)) - bm) / bd
            )
        elif s.schedule == "ve":
            self.sigma, self.rate, self.time = np.sqrt, lambda t: 0.5 / np.sqrt(t), np.square
        else:
            self.sigma, self.rate, self.time = (lambda t: t), (lambda t: 1.0), (lambda v: v)
        if s.scaling == "vp":
            self.s: Callable = lambda t: 1 / np.sqrt(1 + self.sigma(t) ** 2)
            self.s_rate: Callable = lambda t: -self.sigma(t) * self.rate(t) * self.s(t) ** 3
        else:
            self.s, self.s_rate = (lambda t: 1.0), (lambda t: 0.0)

    def slope(self, x: np.ndarray, t: float) -> np.ndarray:
        """Algorithm 1, line 4."""
        v, s = self.sigma(t), self.s(t)
        return (self.rate(t) / v + self.s_rate(t) / s) * x - self.rate(t) * s / v * denoise(x / s, v)

    def step(self, x: np.ndarray, start: float, end: float, s: Any) -> np.ndarray:
        h, d = end - start, self.slope(x, start)
        if s.solver == "euler" or end == 0:
            return x + h * d
        ahead = self.slope(x + s.alpha * h * d, start + s.alpha * h)
        return x + h * ((1 - 0.5 / s.alpha) * d + 0.5 / s.alpha * ahead)


def edm_levels(low: float, high: float, n: int, rho: float) -> np.ndarray:
    i = np.arange(n) / (n - 1)
    return (high ** (1 / rho) + i * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def churn(s: Any, level: float) -> float:
    if s.churn_bins:
        amount = sum(churn for low, high, churn in s.churn_bins if low <= level < high)
    else:
        amount = s.s_churn if s.s_tmin <= level <= s.s_tmax else 0.0
    return min(amount / s.num_steps, math.sqrt(2) - 1)


def heun_or_euler(latents: np.ndarray, s: Any, noise: Callable) -> np.ndarray:
    """Algorithm 2 for any schedule and scaling; restarts go up from the nearest time step and come back."""
    p = Problem(s)
    t = np.append(p.time(p.levels), 0.0)
    x = latents * p.levels[0] * p.s(t[0])

    def lift(x: np.ndarray, low: float, high: float, n: np.ndarray) -> np.ndarray:
        """Line 6, from a noise level up to another."""
        a, b = p.time(low), p.time(high)
        return p.s(b) / p.s(a) * x + np.sqrt(high**2 - low**2) * p.s(b) * s.s_noise * n

    for k, level in enumerate(p.levels):
        draw = 0
        for low, high, steps, times in s.restarts:
            if k != 1 + np.abs(p.levels[1:] - low).argmin() or high <= level:
                continue
            inner = np.append(p.time(edm_levels(level, high, steps + 1, s.rho)[:-1]), t[k])
            for _ in range(times):
                draw += 1
                x = lift(x, level, high, noise(k, draw=draw))
                for a, b in itertools.pairwise(inner):
                    x = p.step(x, a, b, s)
        gamma, start = churn(s, level), t[k]
        if gamma > 0:
            x, start = lift(x, level, level * (1 + gamma), noise(k)), p.time(level * (1 + gamma))
        x = p.step(x, start, t[k + 1], s)
    return x


def euler_maruyama(latents: np.ndarray, s: Any, noise: Callable) -> np.ndarray:
    """dx = (f x - g^2 score) dt + g dw, f = s'/s, g = s sqrt(2 sigma sigma') (appendix B.1); then D."""
    p = Problem(s)
    t = p.time(p.levels)
    x = latents * p.levels[0] * p.s(t[0])
    for k in range(s.num_steps - 1):
        h, scale, v = t[k + 1] - t[k], p.s(t[k]), p.sigma(t[k])
        g2 = scale**2 * 2 * v * p.rate(t[k])
        drift = p.s_rate(t[k]) / scale * x - g2 * score(x / scale, v) / scale
        x = x + drift * h + np.sqrt(g2 * -h) * s.s_noise * noise(k)
    return denoise(x / p.s(t[-1]), p.sigma(t[-1]))


def predictor_corrector(latents: np.ndarray, s: Any, noise: Callable) -> np.ndarray:
    """Song's algorithms 2 and 3 (VE), 4 and 5 (VP) in his variables: x for VE, s x for VP."""
    levels = Problem(s).levels
    vp = s.scaling == "vp"
    abar = 1 / (1 + levels**2) if vp else np.ones_like(levels)  # of the state, which is sqrt(abar) (y + sigma n)
    x = latents * levels[0] * np.sqrt(abar[0])
    for k, level in enumerate(levels):
        root, last = np.sqrt(abar[k]), k == len(levels) - 1
        before = 1.0 if last else abar[k + 1]  # "before" in the order of the forward process
        alpha = abar[k] / before
        z, g = noise(k, draw=1), score(x / root, level) / root
        norms = [np.sqrt((a**2).sum(axis=(1, 2, 3), keepdims=True)) for a in (z, g)]
        size = 2 * alpha * (s.snr * norms[0] / norms[1]) ** 2
        x = x + size * g + np.sqrt(2 * size) * s.s_noise * z
        if last:
            return denoise(x / root, level)
        g, z = score(x / root, level) / root, noise(k) * s.s_noise
        if vp:
            beta = 1 - alpha
            x = (2 - np.sqrt(1 - beta)) * x + beta * g + np.sqrt(beta) * z
        else:
            difference = level**2 - levels[k + 1] ** 2
            x = x + difference * g + np.sqrt(difference) * z
    raise AssertionError


def dpmpp_2m(latents: np.ndarray, s: Any, noise: Callable) -> np.ndarray:
    """Lu et al. 2022, algorithm 2, data prediction, alpha = 1."""
    levels = Problem(s).levels
    x, lam, before = latents * levels[0], -np.log(levels), None
    for k in range(len(levels) - 1):
        d, h = denoise(x, levels[k]), lam[k + 1] - lam[k]
        if before is None:
            target = d
        else:
            r = (lam[k] - lam[k - 1]) / h
            target = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * before
        x, before = levels[k + 1] / levels[k] * x - np.expm1(-h) * target, d
    return denoise(x, levels[-1])


def dpmpp_3m_sde(latents: np.ndarray, s: Any, noise: Callable) -> np.ndarray:
    """The reverse SDE solved exactly but for D, which is the parabola through its last three values: by quadrature."""
    levels = Problem(s).levels
    x, lam, past = latents * levels[0], -np.log(levels), []
    nodes, weights = np.polynomial.legendre.leggauss(40)
    for k in range(len(levels) - 1):
        past = [*past, (lam[k], denoise(x, levels[k]))][-3:]
        h = lam[k + 1] - lam[k]
        u, w = (nodes + 1) * h / 2, weights * h / 2
        mean = np.exp(-2 * h) * x
        for at, value in past:
            others = [other for other, _ in past if other != at]
            lagrange = np.prod([(lam[k] + u - other) / (at - other) for other in others], axis=0) * np.ones_like(u)
            mean = mean + (w * 2 * np.exp(-2 * (h - u)) * lagrange).sum() * value
        x = mean + levels[k + 1] * math.sqrt(1 - math.exp(-2 * h)) * s.s_noise * noise(k)
    return denoise(x, levels[-1])


def rk45(latents: np.ndarray, s: Any, noise: Callable) -> np.ndarray:
    p = Problem(s)
    low, high = p.range
    first, last = p.time(high), p.time(low)
    images = []
    for latent in latents:
        start = (latent * high * p.s(first)).ravel()
        solution = solve_ivp(lambda t, x: p.slope(x, t), (first, last), start, rtol=s.tolerance, atol=s.tolerance)
        x = solution.y[:, -1]
        images.append((x - last * p.slope(x, last)).reshape(latent.shape))
    return np.stack(images)


SOLVERS: dict[str, Callable[..., np.ndarray]] = {
    "heun": heun_or_euler,
    "euler": heun_or_euler,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "rk45": rk45,
    "euler_maruyama": euler_maruyama,
    "predictor_corrector": predictor_corrector,
}


def numpy_sample(latents: torch.Tensor, settings: Any, noise: Callable[..., torch.Tensor]) -> np.ndarray:
    def in_numpy(step: int, draw: int = 0) -> np.ndarray:
        return noise(step, draw=draw).numpy()

    return SOLVERS[settings.solver](latents.numpy(), settings, in_numpy)
