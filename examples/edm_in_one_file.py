"""All of EDM in one file: data, network, preconditioning, loss, training, Algorithm 2, FID. Read it top to bottom.

Karras, Aittala, Aila, Laine: "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022
(arXiv:2206.00364). Equations, tables, algorithms and appendices below are the paper's, and so are the names.

    python examples/edm_in_one_file.py

trains on 8x8 handwritten digits for about two minutes on two CPU cores, prints FIDs and writes digits.png, a row a
digit. It needs torch, numpy, scikit-learn and Pillow, and nothing of edm_ray; a test holds it equal to edm_ray.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

# What Table 1 calls the parameters of training, and what Table 7 calls hyperparameters, for this data set.
sigma_data = 0.75  # standard deviation of the pixels in [-1, 1]; the paper's data sets have 0.5
P_mean, P_std = -1.2, 1.2  # ln(sigma) in training
learning_rate, ramp_up = 2e-3, 2_000  # Adam's step size, reached after so many images
ema_halflife, ema_ramp_up = 4_000, 0.05  # in images; at most this share of the images seen so far
batch_size, duration = 128, 64_000  # in images; the paper trains on 200 million
num_classes = 10


# ---- Data: images y in [-1, 1] with class labels ------------------------------------------------------------------


def load_images():
    """The 1,797 digits of scikit-learn: float32 [n, 1, 8, 8] in [-1, 1], classes int64 [n]."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16))  # 17 grey levels -> 8 bits, as any other image file has
    images = torch.from_numpy(pixels).to(torch.float32)[:, None] / 127.5 - 1
    return images, torch.from_numpy(digits.target).to(torch.int64)


def to_pixels(images):
    """Back to uint8, rounded: [-1, 1] -> 0..255."""
    return (images.double() * 127.5 + 128).clip(0, 255).to(torch.uint8)


# ---- Network F_theta: a small DDPM++ (Song et al. 2021; appendix F.1 and Table 7) ---------------------------------


def group_norm(channels):
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class Block(nn.Module):
    """Residual block. The embedding of noise level and class is added between its two convolutions."""

    def __init__(self, n_in, n_out, n_emb, resample=None, attention=False):
        super().__init__()
        self.resample = nn.Identity() if resample is None else resample
        self.norm0 = group_norm(n_in)
        self.conv0 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.affine = nn.Linear(n_emb, n_out)
        self.norm1 = group_norm(n_out)
        self.conv1 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.skip = nn.Identity() if n_in == n_out and resample is None else nn.Conv2d(n_in, n_out, 1)
        self.attention = attention
        if attention:
            self.norm2 = group_norm(n_out)
            self.qkv = nn.Conv2d(n_out, 3 * n_out, 1)
            self.proj = nn.Conv2d(n_out, n_out, 1)

    def forward(self, x, emb):
        """x [B, n_in, H, W], emb [B, n_emb] -> [B, n_out, H', W']."""
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(h)  # the paper drops 10 to 25 % of h out before this convolution; here training is short
        x = (h + self.skip(self.resample(x))) * math.sqrt(0.5)  # a sum of two terms of unit variance keeps it so
        return (x + self.attend(self.norm2(x))) * math.sqrt(0.5) if self.attention else x

    def attend(self, x):
        """Each pixel looks at all others: softmax(q k / sqrt(channels)) v. Channel 3c, 3c+1, 3c+2: q, k, v of c."""
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, channels, 3, height * width).unbind(2)
        weights = (torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(channels)).softmax(2)
        return self.proj(torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape))


class UNet(nn.Module):
    """Down through the levels and up again; every block on the way up also gets what one on the way down made."""

    def __init__(self, resolution=8, width=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)):
        super().__init__()
        self.width, n_emb = width, 4 * width
        self.map_label = nn.Linear(num_classes, width)
        self.map_layer0 = nn.Linear(width, n_emb)
        self.map_layer1 = nn.Linear(n_emb, n_emb)
        self.enc = nn.ModuleDict({f"{resolution}x{resolution}_conv": nn.Conv2d(1, width, 3, padding=1)})
        self.dec = nn.ModuleDict()
        n, made = width, [width]  # channels now; channels of everything the encoder made
        for level, mult in enumerate(channel_mult):
            res = resolution >> level
            if level > 0:
                self.enc[f"{res}x{res}_down"] = Block(n, n, n_emb, resample=nn.AvgPool2d(2))
                made.append(n)
            for i in range(num_blocks):
                self.enc[f"{res}x{res}_block{i}"] = Block(n, width * mult, n_emb, attention=res in attn_resolutions)
                n = width * mult
                made.append(n)
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = Block(n, n, n_emb, attention=True)
                self.dec[f"{res}x{res}_in1"] = Block(n, n, n_emb)
            else:
                self.dec[f"{res}x{res}_up"] = Block(n, n, n_emb, resample=nn.Upsample(scale_factor=2))
            for i in range(num_blocks + 1):
                attention = i == num_blocks and res in attn_resolutions
                self.dec[f"{res}x{res}_block{i}"] = Block(n + made.pop(), width * mult, n_emb, attention=attention)
                n = width * mult
        self.dec[f"{resolution}x{resolution}_aux_norm"] = group_norm(n)
        self.dec[f"{resolution}x{resolution}_aux_conv"] = nn.Conv2d(n, 1, 3, padding=1)

    def forward(self, x, c_noise, labels):
        """x [B, 1, R, R] of unit variance, c_noise [B], labels (classes) int64 [B] -> [B, 1, R, R]."""
        k = torch.arange(self.width // 2, dtype=c_noise.dtype) / (self.width // 2 - 1)
        phase = c_noise[:, None] * (1 / 10_000) ** k
        emb = torch.cat([phase.sin(), phase.cos()], 1)
        emb = emb + self.map_label(F.one_hot(labels, num_classes).to(x.dtype) * math.sqrt(num_classes))
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        conv, *blocks = self.enc.values()
        x = conv(x)
        made = [x]
        for block in blocks:
            x = block(x, emb)
            made.append(x)
        *named_blocks, (_, norm), (_, conv) = self.dec.items()
        for name, block in named_blocks:
            x = block(torch.cat([x, made.pop()], 1) if "_block" in name else x, emb)
        return conv(F.silu(norm(x)))


def initialize(network):
    """Uniform weights (Glorot and Bengio 2010), biases 0; what ends a residual branch begins near 0: blocks do nothing
    yet, F_theta is about 0, and the loss begins at about 1 a pixel at every noise level."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            near_zero = name.endswith(("conv1", "proj", "aux_conv"))
            gain = 1e-5 if near_zero else math.sqrt(0.2) if name.endswith("qkv") else 1.0
            nn.init.xavier_uniform_(layer.weight, gain)
            nn.init.zeros_(layer.bias)


# ---- Preconditioning: equation 7 with the EDM column of Table 1 (derived in appendix B.6) -------------------------


class Denoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise): what F sees has unit variance, and so has what it learns."""

    def __init__(self, network):
        super().__init__()
        self.model = network

    def forward(self, x, sigma, labels):
        """Noisy images x [B, 1, R, R] at noise levels sigma [B], classes [B] -> expected clean images, float32."""
        x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
        c_in = 1 / (sigma**2 + sigma_data**2).sqrt()
        c_noise = sigma.log() / 4
        return c_skip * x + c_out * self.model(c_in * x, c_noise.flatten(), labels)


# ---- Loss: equation 2 with p_train and lambda of Table 1; by equation 8 that of F has weight 1 everywhere ---------


def loss(D, y, labels, draw, noise):
    """lambda(sigma) |D(y + n; sigma) - y|^2 of each image: [B]. draw [B] and noise [B, 1, R, R] are unit normal."""
    sigma = (P_mean + P_std * draw).exp().reshape(-1, 1, 1, 1)  # p_train: ln(sigma) ~ N(P_mean, P_std^2)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2  # lambda(sigma) = 1 / c_out^2
    n = noise * sigma
    return (weight * (D(y + n, sigma.flatten(), labels) - y) ** 2).sum((1, 2, 3))


# ---- Training: Adam with a ramp of the learning rate, and an average of the weights (appendix F.2) ----------------


def random_batch(nimg, images, labels):
    """Images, classes, unit normal numbers [B] for the noise levels and noise for the images from nimg on."""
    rows = torch.randint(len(images), (batch_size,))
    return images[rows], labels[rows], torch.randn(batch_size), torch.randn(batch_size, *images.shape[1:])


def train(D, images, labels, duration=duration, batch=random_batch):
    """Train D in place on so many images. Returns the averaged denoiser, which is the one to sample from, and the mean
    loss of every step. Configuration F of the paper also augments the images, which pays in longer training."""
    average = copy.deepcopy(D).requires_grad_(False)
    adam = torch.optim.Adam(D.parameters(), betas=(0.9, 0.999), eps=1e-8)
    history = []
    for nimg in range(0, duration, batch_size):
        mean_loss = loss(D, *batch(nimg, images, labels)).mean()
        adam.zero_grad()
        mean_loss.backward()
        adam.param_groups[0]["lr"] = learning_rate * min(nimg / ramp_up, 1)
        adam.step()
        halflife = min(ema_halflife, nimg * ema_ramp_up)
        beta = 0.5 ** (batch_size / max(halflife, 1e-8))  # the share of the average that stays
        with torch.no_grad():
            for kept, new in zip(average.parameters(), D.parameters(), strict=True):
                kept.lerp_(new, 1 - beta)
        history.append(mean_loss.item())
        if len(history) % 50 == 0:
            print(f"{nimg + batch_size:6,} images  loss {np.mean(history[-50:]) / images[0].numel():.3f} a pixel")
    return average, history


# ---- Sampling: Algorithm 2, which with S_churn = 0 is Algorithm 1 for sigma(t) = t and s(t) = 1 -------------------


def time_steps(N, sigma_min, sigma_max, rho):
    """Equation 5: t_0 = sigma_max > ... > t_{N-1} = sigma_min > t_N = 0; the larger rho, the shorter the last steps."""
    i = torch.arange(N, dtype=torch.float64) / (N - 1)
    t = (sigma_max ** (1 / rho) + i * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return [*t.tolist(), 0.0]


@torch.no_grad()
def stochastic_sampler(
    D, latents, labels, N=18, S_churn=0.0, S_tmin=0.0, S_tmax=math.inf, S_noise=1.0,
    sigma_min=0.002, sigma_max=80.0, rho=7.0, noise=None,
):  # fmt: skip
    """Algorithm 2: unit normal latents [B, 1, R, R] and classes [B] -> images, float64. noise(i): unit normal numbers
    of step i, like latents. D is called 2N - 1 times."""

    def slope(x, t):  # dx/dt of equation 1, which is (x - D(x; t)) / t by equation 3
        return (x - D(x, torch.full((len(x),), t, dtype=x.dtype), labels).to(torch.float64)) / t

    t = time_steps(N, sigma_min, sigma_max, rho)
    x = latents.to(torch.float64) * t[0]
    for i in range(N):
        gamma = min(S_churn / N, math.sqrt(2) - 1) if S_tmin <= t[i] <= S_tmax else 0.0
        t_hat = t[i] + gamma * t[i]  # a higher noise level than now,
        x_hat = x
        if gamma > 0:  # reached by adding noise
            epsilon = S_noise * (torch.randn_like(x) if noise is None else noise(i))
            x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * epsilon
        d = slope(x_hat, t_hat)
        x = x_hat + (t[i + 1] - t_hat) * d  # Euler step from t_hat to t_{i+1}
        if t[i + 1] != 0:  # second-order correction
            d_prime = slope(x, t[i + 1])
            x = x_hat + (t[i + 1] - t_hat) * (d + d_prime) / 2
    return x


# ---- FID: Frechet distance between two sets of features (Heusel et al. 2017) --------------------------------------


class Classifier(nn.Module):
    """What Inception is for photographs: a network that tells digits apart and so sees what makes them digits."""

    def __init__(self):
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.hidden, self.logits = nn.Linear(64 * 4 * 4, 64), nn.Linear(64, num_classes)

    def forward(self, pixels):
        """uint8 [B, 1, 8, 8] -> features [B, 64]."""
        x = F.relu(self.conv0(pixels / 127.5 - 1))
        return self.hidden(F.max_pool2d(F.relu(self.conv1(x)), 2).flatten(1))


def train_classifier(pixels, labels, epochs=12):
    classifier = Classifier()
    adam = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(pixels)).split(64):
            cross_entropy = F.cross_entropy(classifier.logits(F.relu(classifier(pixels[rows]))), labels[rows])
            adam.zero_grad()
            cross_entropy.backward()
            adam.step()
    return classifier.requires_grad_(False)


def frechet_distance(a, b):
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features [n, d] and [m, d], float64."""
    (mu_a, S_a), (mu_b, S_b) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    # S_a S_b has the eigenvalues of R S_a R, where R R = S_b; the trace of its root is the sum of their roots.
    values, vectors = np.linalg.eigh(S_b)
    R = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    root_trace = np.sqrt(np.linalg.eigvalsh(R @ S_a @ R).clip(0)).sum()
    return float(((mu_a - mu_b) ** 2).sum() + np.trace(S_a) + np.trace(S_b) - 2 * root_trace)


# ---- The whole story ----------------------------------------------------------------------------------------------


def save_grid(pixels, path):
    """uint8 [16 * classes, 1, 8, 8], classes taking turns -> a picture with a row a class, four times as large."""
    framed = F.pad(pixels[:, 0], (1, 1, 1, 1), value=64)
    rows = framed.unflatten(0, (16, num_classes)).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
    grid = Image.fromarray(rows.numpy())
    grid.resize((4 * grid.width, 4 * grid.height), Image.Resampling.NEAREST).save(path)


def main():
    torch.manual_seed(0)
    images, labels = load_images()
    D = Denoiser(UNet())
    initialize(D.model)
    print(f"{len(images):,} images, standard deviation {images.std():.2f}; ", end="")
    print(f"{sum(p.numel() for p in D.parameters()):,} parameters")
    D, _ = train(D, images, labels)

    classifier = train_classifier(to_pixels(images), labels)
    real = classifier(to_pixels(images)).double().numpy()
    print(f"FID of one half of the digits against the other: {frechet_distance(real[::2], real[1::2]):.2f}")
    latents, classes = torch.randn(len(images), 1, 8, 8), torch.arange(len(images)) % num_classes
    for S_churn in (0, 5):
        samples = to_pixels(stochastic_sampler(D, latents, classes, S_churn=S_churn))
        fid = frechet_distance(classifier(samples).double().numpy(), real)
        print(f"FID of {len(samples):,} samples against the digits, S_churn = {S_churn}: {fid:.2f}")

    save_grid(samples[: 16 * num_classes], "digits.png")
    print("digits.png: 16 samples of each digit")


if __name__ == "__main__":
    main()
