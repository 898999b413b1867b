"""Load a model, sample from it, measure its FID.

python few_lines.py MODEL REFERENCE [IMAGES]

Model directory and reference, local or s3://; `edm-ray demo` makes both (demo/run/model, demo/reference).
"""

import sys

import torch

import edm_ray as edm

model_uri, reference_uri, num = (*sys.argv[1:], "500")[:3]
model = edm.load_model(model_uri)
sampler = edm.Heun(num_steps=18)  # Algorithm 2 without churn

images = edm.generate(model, torch.arange(100), sampler)  # uint8 [100, C, H, W]; image i depends on seed i only
print(f"{len(images)} images of {tuple(images.shape[1:])}, {sampler.nfe} network evaluations each")

for s_churn in (0, 5):
    estimate = edm.evaluate(model, reference_uri, edm.Heun(num_steps=18, s_churn=s_churn), num=int(num))
    print(f"S_churn = {s_churn}: {estimate.describe()}")
