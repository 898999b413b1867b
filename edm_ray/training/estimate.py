"""What a run will need, before it starts: memory a worker, GPU time, money. Every number says where it is from."""

from __future__ import annotations

from edm_ray.config.published import V100_HOURS, Quantity, gpu_price
from edm_ray.config.recipes import CIFAR10, config_f
from edm_ray.config.shape import DataShape
from edm_ray.config.training import TrainingConfig
from edm_ray.networks.cost import NetworkCost, network_cost

STATE_BYTES = 4 * 5
"""A parameter in fp32: itself, its gradient, Adam's two moments, its average."""
GIB = 1 << 30


def memory_gib(cost: NetworkCost, images: int, precision: str) -> Quantity:
    """Parameters, optimizer, averages and activations of one worker that holds ``images`` at once."""
    low = precision in ("bf16", "fp16")
    saved = cost.saved_bytes / (2 if low else 1)
    return Quantity(
        value=(cost.parameters * STATE_BYTES + saved * images) / GIB,
        unit="GiB a worker",
        kind="assumed" if low else "computed",
        source=f"{STATE_BYTES} bytes a parameter and {saved / 2**20:,.1f} MiB of activations an image "
        f"x {images} images, {f'in {precision} half of those in fp32' if low else 'fp32'}, without the library's own "
        "workspace",
    )


def gpu_hours(preset: str, config: TrainingConfig, cost: NetworkCost) -> Quantity:
    """The published time where the paper trained this configuration, else that time scaled by multiply-adds."""
    family = preset.split("-")[0]
    if preset.endswith(("-f", "-adm")) and family in V100_HOURS:
        return V100_HOURS[family]
    known = network_cost(config_f(DataShape(resolution=32, channels=3, num_classes=0), CIFAR10, "vp").denoiser)
    scale = cost.forward_macs * config.total_kimg / (known.forward_macs * 200_000.0)
    return Quantity(
        value=V100_HOURS["cifar10"].value * scale,
        unit="V100 hours",
        kind="assumed",
        source="the paper's CIFAR-10 time scaled by images x multiply-adds; small networks use a GPU worse than that",
    )


def dollars(hours: Quantity) -> Quantity:
    """GPU time in money, at an assumed price."""
    price = gpu_price(hours.unit.split()[0])
    return Quantity(value=hours.value * price.value, unit="USD", kind="assumed", source=f"at {price}")
