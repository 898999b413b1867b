"""F_theta, the U-Nets of Karras et al. 2022, and the denoisers around them."""

from edm_ray.networks.build import build_denoiser, build_network

__all__ = ["build_denoiser", "build_network"]
