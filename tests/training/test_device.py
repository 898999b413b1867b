"""What a step asks of a device. Tensors on "meta" have no numbers, so whoever reads one is found; copies are seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.config.shape import DataShape
from edm_ray.data.manifest import open_dataset
from edm_ray.data.reader import open_reader
from edm_ray.training.device import Place, set_precision, to_device
from edm_ray.training.state import TrainingState
from edm_ray.training.step import TrainingStep

META = torch.device("meta")
DIGITS = DataShape(resolution=8, channels=1, num_classes=10)


class _NoWaiting(TorchDispatchMode):
    """Refuse copies from the host that would wait for the device's work (on a GPU: all but non_blocking ones)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            there = torch.device(kwargs.get("device") or args[0].device)
            assert there == args[0].device or kwargs.get("non_blocking"), f"{args[0].device} -> {there} waits"
        return func(*args, **kwargs)


@pytest.fixture
def pinned(monkeypatch):
    """Memory is pinned by CUDA only."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


def test_the_watch_finds_what_waits(pinned):
    x = torch.zeros(3, device=META)
    for reads in (lambda: float(x.sum()), lambda: bool((x > 0).any()), x.cpu, x.nonzero, lambda: x[x > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            reads()
    for waits in (lambda: torch.zeros(3).to(META), lambda: torch.tensor([1.0]).to(META)):
        with pytest.raises(AssertionError, match="waits"), _NoWaiting():
            waits()
    with _NoWaiting():
        assert to_device(torch.zeros(3), META).device == META


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_sums_are_in_fp32_and_tf32_is_on_only_where_asked(monkeypatch, precision):
    """Flags of the process; no GPU is needed to set them."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    flags = ((matmul, "allow_fp16_reduced_precision_reduction"), (matmul, "allow_bf16_reduced_precision_reduction"),
             (matmul, "allow_tf32"), (cudnn, "allow_tf32"), (cudnn, "benchmark"), (cudnn, "deterministic"))  # fmt: skip
    before = [getattr(*flag) for flag in flags]
    try:
        for place, name in flags:
            setattr(place, name, name != "deterministic")
        set_precision(configure(tiny(DIGITS), None, [f"precision={precision}"]), torch.device("cuda"))
        assert [getattr(*flag) for flag in flags] == [
            False,
            False,
            precision == "tf32",
            precision == "tf32",
            False,
            True,
        ]
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        for (place, name), value in zip(flags, before, strict=True):
            setattr(place, name, value)


@pytest.mark.parametrize(("augmented", "kind"), [(True, "edm"), (False, "iddpm")])
def test_no_number_is_read_from_the_device_in_a_step_and_no_copy_waits(digits_dir, pinned, augmented, kind):
    """With dropout, label dropout, accumulation, loss scale, clipping, power-function averages."""
    dataset = open_dataset(str(digits_dir / "train"))
    settings = ["denoiser.network.augment_dim=9", "micro_batch=7", "loss_scale=100", "optimizer.grad_clip=1"]
    settings += ["ema.sigma_rels=[0.05, 0.1]", "denoiser.network.label_dropout=0.1"]
    settings += [f"augment.probability={0.5 * augmented}", f"objective.kind={kind}"]
    config = configure(tiny(dataset.shape), None, [*settings, f"denoiser.preconditioning.kind={kind}"])
    pixels, state = open_reader(dataset), TrainingState(config, META)
    step = TrainingStep(config, Place(device=str(META)), state)
    step.take(pixels)  # constants are copied once
    with _NoWaiting():
        step.take(pixels)
    assert state.parameters[0].device == META and state.images_seen == 48
