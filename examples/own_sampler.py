"""A sampler of one's own: a frozen subclass of edm.Sampler whose `run` is the algorithm.

python own_sampler.py MODEL REFERENCE [IMAGES]
"""

import itertools
import math
import sys
from dataclasses import dataclass

import edm_ray as edm


@dataclass(frozen=True, kw_only=True)
class GeneralizedDDIM(edm.Sampler):
    """DDIM with noise (Song, Meng and Ermon 2021, equation 16) in terms of sigma: eta = 0 is Euler, 1 is DDPM."""

    solver = "generalized_ddim"
    follows_schedule = False  # it steps between noise levels, not over a time t

    eta: float = 1.0

    def run(self, D, x, levels, path, noise):
        """x at levels[0] -> images. D(x, sigma) is the denoised x; noise(i) is unit normal, keyed by image and step."""
        for i, (now, after) in enumerate(itertools.pairwise(levels)):
            added = self.eta * after * math.sqrt(1 - (after / now) ** 2)
            down = math.sqrt(after**2 - added**2)  # go below the next level, then add noise up to it
            x = x + (down - now) / now * (x - D(x, now))
            if added > 0:
                x = x + added * noise(i)
        return x

    def needs_noise(self, denoiser=None):
        return self.eta > 0


if __name__ == "__main__":
    model_uri, reference_uri, num = (*sys.argv[1:], "500")[:3]
    model = edm.load_model(model_uri)
    for sampler in (edm.Euler(num_steps=50), GeneralizedDDIM(num_steps=50, eta=0.5), GeneralizedDDIM(num_steps=50)):
        print(sampler, edm.evaluate(model, reference_uri, sampler, num=int(num)).describe())
