"""Few-step solvers in NumPy float64, as their papers write them: nothing of the package but the names of settings.

Each takes (latents, levels, settings, noise, D) and returns D at the last level. Quadrature and polynomial fits stand
where the package has closed forms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial

Denoise = Callable[[np.ndarray, float], np.ndarray]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(60)


def order_of(s: Any, step: int, count: int, full: int) -> int:
    """Rising from 1; at the end at most the steps left, the one to 0 included."""
    left = count - step
    return min(full, step + 1, left) if s.lower_order_final else min(full, step + 1)


def analytic(s: Any, D: Denoise) -> Denoise:
    """The first call is free where ``afs`` is set: x - sigma x / sqrt(1 + sigma^2)."""
    calls = iter(range(10**6))

    def called(x: np.ndarray, sigma: float) -> np.ndarray:
        if next(calls) == 0 and s.afs:
            return x - sigma * x / np.sqrt(1 + sigma**2)
        return D(x, sigma)

    return called


def lagrange(nodes: list[float], j: int) -> Polynomial:
    """1 at node j, 0 at the others."""
    poly = Polynomial([1.0])
    for k, node in enumerate(nodes):
        if k != j:
            poly = poly * Polynomial([-node, 1.0]) / (nodes[j] - node)
    return poly


def adams_bashforth(latents: np.ndarray, levels: list[float], s: Any, noise: Callable, D: Denoise) -> np.ndarray:
    """DEIS (Zhang and Chen 2023, equation 15, s = 1): eps is integrated; iPNDM: as if steps were equal (its table)."""
    table = [[1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    x, eps, D = latents * levels[0], [], analytic(s, D)
    for i in range(len(levels) - 1):
        now, after = levels[i], levels[i + 1]
        eps.append((x - D(x, now)) / now)
        order = order_of(s, i, len(levels), s.order)
        if s.solver == "ipndm":
            x = x + (after - now) * sum(c * e for c, e in zip(table[order - 1], eps[::-1], strict=False))
            continue
        nodes = levels[i - order + 1 : i + 1]
        for j, value in enumerate(eps[i - order + 1 : i + 1]):
            primitive = lagrange(nodes, j).integ()
            x = x + (primitive(after) - primitive(now)) * value
    return D(x, levels[-1])


def integrated(values: list[np.ndarray], lams: list[float], now: float, after: float, a: float) -> np.ndarray:
    """The integral of a exp(-a (after - lam)) times the polynomial through the values at lams, by quadrature."""
    h = after - now
    u, w = now + (NODES + 1) * h / 2, WEIGHTS * h / 2
    kernel = w * a * np.exp(-a * (after - u))
    return sum((kernel * lagrange(lams, j)(u)).sum() * value for j, value in enumerate(values))


def dpmpp(latents: np.ndarray, levels: list[float], s: Any, noise: Callable, D: Denoise) -> np.ndarray:
    """DPM-Solver++ 2M and 3M, ODE and SDE: 2M as in its algorithm 2 and equation for the SDE, 3M by quadrature."""
    eta, full = getattr(s, "eta", 0.0), 3 if "3m" in s.solver else 2
    x, lam, m, D = latents * levels[0], [-math.log(v) for v in levels], [], analytic(s, D)
    for i in range(len(levels) - 1):
        m.append(D(x, levels[i]))
        h, a = lam[i + 1] - lam[i], 1 + eta
        order = order_of(s, i, len(levels), full)
        if full == 3:
            start = i - order + 1
            mean = math.exp(-a * h) * x + integrated(m[start:], lam[start : i + 1], lam[i], lam[i + 1], a)
        else:
            mean = math.exp(-a * h) * x + (1 - math.exp(-a * h)) * m[i]
            if order == 2:
                r = (lam[i] - lam[i - 1]) / h
                mean = mean + (1 - math.exp(-a * h)) / (2 * r) * (m[i] - m[i - 1])
        x = mean
        if eta:
            x = x + levels[i + 1] * math.sqrt(1 - math.exp(-2 * eta * h)) * s.s_noise * noise(i)
    return D(x, levels[-1])


def unipc(latents: np.ndarray, levels: list[float], s: Any, noise: Callable, D: Denoise) -> np.ndarray:
    """Zhao et al. 2023, data prediction (appendix): R_p a_p B(h) = g_p, varphi-functions; 1/2 for one difference."""
    x, lam, m, D = latents * levels[0], [-math.log(v) for v in levels], [], analytic(s, D)
    state, before = x, 1
    for i in range(len(levels)):
        value = D(x, levels[i])
        if i == len(levels) - 1:
            return value
        if i > 0:  # UniC: from levels[i - 1], with the value at the end
            x = unified(state, m + [value], lam, i - 1, before, s.variant, corrector=True)
        m.append(value)
        before, state = order_of(s, i, len(levels), s.order), x
        x = unified(x, m, lam, i, before, s.variant, corrector=False)
    raise AssertionError


def unified(
    x: np.ndarray, m: list[np.ndarray], lam: list[float], i: int, p: int, variant: str, corrector: bool
) -> np.ndarray:
    h = lam[i + 1] - lam[i]
    r = [(lam[i - k] - lam[i]) / h for k in range(1, p)]
    differences = [(m[i - k] - m[i]) / each for k, each in zip(range(1, p), r)]
    if corrector:
        r, differences = [*r, 1.0], [*differences, m[i + 1] - m[i]]
    B = -h if variant == "bh1" else math.expm1(-h)
    x = math.exp(-h) * x - math.expm1(-h) * m[i]
    if not r:
        return x
    # varphi_k(-h) by quadrature: the integral of exp(-(1 - u) h) u^(k-1) / (k-1)! over 0..1.
    u, w = (NODES + 1) / 2, WEIGHTS / 2
    phi = [(w * np.exp(-(1 - u) * h) * u**k).sum() / math.factorial(k) for k in range(len(r) + 1)]
    g = [-h * math.factorial(k) * phi[k] / B for k in range(1, len(r) + 1)]
    a = [0.5] if len(r) == 1 else np.linalg.solve(np.array([[each**k for each in r] for k in range(len(r))]), g)
    return x - B * sum(weight * difference for weight, difference in zip(a, differences))


def sa_solver(latents: np.ndarray, levels: list[float], s: Any, noise: Callable, D: Denoise) -> np.ndarray:
    """Xue et al. 2023, algorithm 1, data prediction, tau constant in each step."""
    x, lam, m, D = latents * levels[0], [-math.log(v) for v in levels], [], analytic(s, D)
    state, n, before = x, 0.0, 1
    for i in range(len(levels)):
        value = D(x, levels[i])
        if i == len(levels) - 1:
            return value
        m.append(value)
        if i > 0:
            x = stochastic_adams(state, m, lam, (i - 1, before + 1), tau_at(s, levels[i - 1])) + n
        before, state, tau = order_of(s, i, len(levels), s.order), x, tau_at(s, levels[i])
        h = lam[i + 1] - lam[i]
        n = levels[i + 1] * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * s.s_noise * noise(i) if tau else 0.0
        x = stochastic_adams(x, m, lam, (i, before), tau) + n
    raise AssertionError


def tau_at(s: Any, level: float) -> float:
    return s.tau if s.tau_min <= level <= s.tau_max else 0.0


def stochastic_adams(
    x: np.ndarray, m: list[np.ndarray], lam: list[float], at: tuple[int, int], tau: float
) -> np.ndarray:
    """The step from ``at[0]``, by the last ``at[1]`` values of m."""
    i, count = at
    a, start = 1 + tau**2, len(m) - count
    return math.exp(-a * (lam[i + 1] - lam[i])) * x + integrated(m[start:], lam[start : len(m)], lam[i], lam[i + 1], a)


def dpm_2(latents: np.ndarray, levels: list[float], s: Any, noise: Callable, D: Denoise) -> np.ndarray:
    """DPM-Solver-2, algorithm 1 with r_1 = 1/2, alpha = 1: in eps and exponentials of lambda."""
    x, D = latents * levels[0], analytic(s, D)

    def eps(x: np.ndarray, sigma: float) -> np.ndarray:
        return (x - D(x, sigma)) / sigma

    for now, after in itertools.pairwise(levels):
        h = math.log(now / after)
        middle = math.exp(-(-math.log(now) + h / 2))
        u = x - middle * math.expm1(h / 2) * eps(x, now)
        x = x - after * math.expm1(h) * eps(u, middle)
    return D(x, levels[-1])


SOLVERS: dict[str, Callable[..., np.ndarray]] = {
    "ipndm": adams_bashforth,
    "deis": adams_bashforth,
    "dpmpp_2m": dpmpp,
    "dpmpp_3m": dpmpp,
    "dpmpp_2m_sde": dpmpp,
    "dpmpp_3m_sde": dpmpp,
    "unipc": unipc,
    "sa_solver": sa_solver,
    "dpm_2": dpm_2,
}
