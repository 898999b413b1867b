"""A model of the FID over a space: a Gaussian process on log FID, and expected improvement under it (scikit-learn).

Deterministic: no random restarts; candidates come from the caller.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

Array = npt.NDArray[np.float64]


class Surrogate:
    """Matern-5/2 with a length for each feature, plus white noise that falls like 1 / n."""

    def __init__(self, features: Sequence[Sequence[float]], fids: Sequence[float], images: Sequence[int]) -> None:
        """features [N, d] in [0, 1], positive FIDs [N], images behind each [N]."""
        self.x = np.asarray(features, dtype=np.float64)
        values = np.log(np.maximum(np.asarray(fids, dtype=np.float64), 1e-12))
        # FIDs far above the median would bend the model where nothing is to be found.
        self.y = np.minimum(values, np.median(values) + 3 * max(np.median(values) - values.min(), 1e-3))
        self.centre, self.scale = float(self.y.mean()), float(self.y.std()) or 1.0
        self.noise = np.min(images) / np.asarray(images, dtype=np.float64)
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(
            np.full(self.x.shape[1], 0.5), [(0.08, 8.0)] * self.x.shape[1], nu=2.5
        )
        first = self._fit(kernel + WhiteKernel(1e-2, (1e-5, 0.5)), 0.0)
        level = float(first.kernel_.k2.noise_level)
        self.kernel = first.kernel_.k1
        self.level = level
        self.process = self._fit(self.kernel, level, optimizer=None)

    def _fit(self, kernel: object, level: float, optimizer: str | None = "fmin_l_bfgs_b") -> GaussianProcessRegressor:
        process = GaussianProcessRegressor(kernel=kernel, alpha=1e-8 + level * self.noise, optimizer=optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(self.x, (self.y - self.centre) / self.scale)
        return process

    def predict(self, features: Array) -> tuple[Array, Array]:
        """[M, d] -> mean and standard deviation of log FID."""
        mean, deviation = self.process.predict(features, return_std=True)
        return mean * self.scale + self.centre, deviation * self.scale

    def improvement(self, features: Array, best: Array) -> Array:
        """Expected fall of log FID below ``best`` [M] at each of [M, d]."""
        mean, deviation = self.predict(features)
        z = (best - mean) / np.maximum(deviation, 1e-12)
        result: Array = deviation * (z * norm.cdf(z) + norm.pdf(z))
        return result

    def believe(self, features: Sequence[float]) -> None:
        """Take the model's own mean for a measurement at a point, so that the next proposal goes elsewhere."""
        row = np.asarray([features], dtype=np.float64)
        mean, _ = self.predict(row)
        self.x = np.concatenate([self.x, row])
        self.y = np.concatenate([self.y, mean])
        self.noise = np.concatenate([self.noise, [1.0]])
        self.process = self._fit(self.kernel, self.level, optimizer=None)
