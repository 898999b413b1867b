"""Preconditioning: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (Karras et al. 2022, equation 7 and Table 1)."""

from __future__ import annotations

import math

import torch
from torch import nn

from edm_ray.diffusion import noise
from edm_ray.errors import InputError, require

Coefficients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Preconditioned(nn.Module):
    """What the four have in common: float32 algebra around a network of any precision. Each is a `Denoiser`.

    network(x, noise_labels, class_labels, augment_labels) is F, any module: x float32 [B, C, H, W], noise_labels
    float32 [B], class_labels float32 [B, label_dim] or None, augment_labels float32 or None -> [B, C or more, H, W]. A
    network without the attribute ``label_dim`` is unconditional. It is kept as `model`, as in the official state dict.
    """

    sigma_data: float = noise.SIGMA_DATA

    def __init__(self, network: nn.Module, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        self.model = network
        self.label_dim = int(getattr(network, "label_dim", 0))
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        """The nearest noise level that the network knows, in the dtype of ``sigma``: every one, unless overridden."""
        return sigma

    def coefficients(self, sigma: torch.Tensor) -> Coefficients:
        """float32 sigma [B, 1, 1, 1] -> (c_skip, c_out, c_in, c_noise), each of that shape."""
        raise NotImplementedError

    def forward(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Denoise. x [B, C, H, W], sigma [B] or a scalar, class_labels one-hot [B or 1, classes], augment_labels
        [B or 1, dim], all of any type of number -> D float32 [B, C, H, W].

        Without labels a conditional network gets zeros. Raises InputError for shapes that do not fit.
        """
        if x.ndim != 4:
            raise InputError(f"x={tuple(x.shape)} is not allowed: [B, C, H, W]")
        if sigma.numel() not in (1, len(x)):
            raise InputError(f"sigma={tuple(sigma.shape)} is not allowed: a scalar or one value an image, [{len(x)}]")
        x = x.to(torch.float32)
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1).expand(len(x), 1, 1, 1)
        label_dim = self.label_dim
        if label_dim == 0:
            class_labels = None
        elif class_labels is None:
            class_labels = torch.zeros(len(x), label_dim, device=x.device)
        elif class_labels.shape not in ((len(x), label_dim), (1, label_dim)):
            raise InputError(
                f"class_labels={tuple(class_labels.shape)} is not allowed: one-hot rows of shape {(len(x), label_dim)} "
                f"or {(1, label_dim)}"
            )
        else:
            class_labels = class_labels.to(torch.float32).expand(len(x), -1)
        if augment_labels is not None:
            augment_labels = augment_labels.to(torch.float32)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        output: torch.Tensor = self.model(c_in * x, c_noise.flatten(), class_labels, augment_labels)
        return c_skip * x + c_out * output[:, : x.shape[1]].to(torch.float32)


class EDM(Preconditioned):
    """The paper's own: F sees unit variance and is trained on targets of unit variance (appendix B.6)."""

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float = noise.SIGMA_DATA,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
    ) -> None:
        require(0 < sigma_data < math.inf, "preconditioning.sigma_data", sigma_data, "greater than 0, finite")
        super().__init__(network, sigma_min, sigma_max)
        self.sigma_data = sigma_data

    def coefficients(self, sigma: torch.Tensor) -> Coefficients:
        variance = sigma**2 + self.sigma_data**2
        c_out = sigma * self.sigma_data / variance.sqrt()
        return self.sigma_data**2 / variance, c_out, 1 / variance.sqrt(), sigma.log() / 4


class VP(Preconditioned):
    """Variance preserving (Song et al. 2021): c_noise = (M - 1) sigma^-1(sigma)."""

    def __init__(
        self,
        network: nn.Module,
        schedule: noise.VP = noise.VP(),  # noqa: B008 (frozen)
        num_train_steps: int = noise.IDDPMGrid.num_train_steps,
    ) -> None:
        schedule.check("preconditioning")
        super().__init__(network, schedule.sigma_min, schedule.sigma_max)
        self.schedule = schedule
        self.beta_d, self.beta_min, self.steps = schedule.beta_d, schedule.beta_min, num_train_steps

    def coefficients(self, sigma: torch.Tensor) -> Coefficients:
        log = (sigma**2).log1p()
        t = 2 * log / ((self.beta_min**2 + 2 * self.beta_d * log).sqrt() + self.beta_min)
        return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), (self.steps - 1) * t


class VE(Preconditioned):
    """Variance exploding (Song et al. 2021): c_noise = ln(sigma / 2)."""

    def __init__(self, network: nn.Module, schedule: noise.VE = noise.VE()) -> None:  # noqa: B008 (frozen)
        schedule.check("preconditioning")
        super().__init__(network, schedule.sigma_min, schedule.sigma_max)
        self.schedule = schedule

    def coefficients(self, sigma: torch.Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return one, sigma, one, (0.5 * sigma).log()


class IDDPM(Preconditioned):
    """Improved DDPM (Nichol and Dhariwal 2021): M noise levels u_j in a float32 buffer; c_noise = M - 1 - j.

    A network with 2 C output channels (learned variance) is fine: the first C are used.
    """

    u: torch.Tensor

    def __init__(self, network: nn.Module, grid: noise.IDDPMGrid = noise.IDDPMGrid()) -> None:  # noqa: B008 (frozen)
        grid.check("preconditioning")
        super().__init__(network, grid.sigma_min, grid.sigma_max)
        self.grid, self.steps = grid, grid.num_train_steps
        self.register_buffer("u", torch.tensor(grid.levels(), dtype=torch.float32))

    def index(self, sigma: torch.Tensor) -> torch.Tensor:
        """Index j of the nearest u_j (compared in float32): int64, same shape."""
        distance = (sigma.to(self.u).reshape(-1, 1) - self.u[: self.steps + 1].reshape(1, -1)).abs()
        return distance.argmin(dim=1).reshape(sigma.shape)

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.u[self.index(sigma)].to(sigma)

    def coefficients(self, sigma: torch.Tensor) -> Coefficients:
        c_noise = (self.steps - 1 - self.index(sigma)).to(torch.float32)
        return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), c_noise


PRECONDITIONERS: dict[str, type[Preconditioned]] = {"edm": EDM, "vp": VP, "ve": VE, "iddpm": IDDPM}
