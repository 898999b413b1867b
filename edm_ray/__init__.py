"""edm_ray: train an EDM denoiser on your images and find the best sampler for it, on any Ray cluster."""

__version__ = "0.1.0"
