"""A network of one's own, trained, sampled and evaluated: any torch.nn.Module with this forward is an F_theta.

python own_network.py [KIMG] [IMAGES]     (trains with so many thousand images; writes into own-network/)
"""

import sys

import torch
from torch import nn

import edm_ray as edm


class ConvNet(nn.Module):
    """Residual convolutions without any change of resolution; noise level and class are added to every pixel."""

    img_resolution, img_channels, label_dim = 8, 1, 10

    def __init__(self, width=64, depth=6):
        super().__init__()
        self.condition = nn.Sequential(nn.Linear(1 + self.label_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv2d(self.img_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.last = nn.Conv2d(width, self.img_channels, 3, padding=1)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        """x [B, 1, 8, 8] is c_in times the noisy images, noise_labels [B] is c_noise, class_labels [B, 10]."""
        told = self.condition(torch.cat([noise_labels[:, None], class_labels], 1))[:, :, None, None]
        h = self.first(x)
        for block in self.blocks:
            h = h + block(nn.functional.silu(h + told))
        return self.last(nn.functional.silu(h))


kimg = sys.argv[1] if len(sys.argv) > 1 else "10"
num = sys.argv[2] if len(sys.argv) > 2 else "500"
data = edm.prepare("digits", "own-network/data")  # real 8x8 digits
short = [f"total_kimg={kimg}", "ema.halflife_kimg=0.5"]  # the preset trains with 64
model = edm.train(data, "digits", "own-network/run", network=ConvNet(), overrides=short)
images = edm.generate(model, torch.arange(100), edm.Heun(num_steps=18))
print(f"pixels from {int(images.min())} to {int(images.max())}")
reference = edm.reference(data, "own-network/reference", extractor="digits")
print(edm.evaluate(model, reference, edm.Heun(num_steps=18), num=int(num)).describe())
