"""Training on a GPU: the same bits again, no waiting for the device, memory as planned."""

from __future__ import annotations

import copy
import gc
import signal
import subprocess
import sys
import time

import pytest
import torch

from edm_ray.config.load import configure
from edm_ray.config.presets import preset
from edm_ray.errors import InputError
from edm_ray.models.checkpoints import Checkpoint
from edm_ray.networks.cost import network_cost
from edm_ray.training.cost import memory_gib
from edm_ray.training.metrics import read_metrics
from tests.gpu.rounds import COLOUR, Pictures, equal, small, step_of, take


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_two_runs_are_bit_equal_and_recording_changes_no_bit(precision: str) -> None:
    config = small(f"precision={precision}")
    first = take(step_of(config), 6)
    assert equal(first, take(step_of(config), 6))
    assert equal(first, take(step_of(small(f"precision={precision}", "graph=false")), 6))


def test_a_run_resumed_from_its_state_is_bit_equal() -> None:
    config = small("precision=bf16")
    whole = take(step_of(config), 6)
    before, after = step_of(config), step_of(config)
    take(before, 3)
    tensors = {stem: {k: v.cpu() for k, v in part.items()} for stem, part in before.state.tensors().items()}
    after.state.restore(Checkpoint(images_seen=before.state.images_seen, tensors=tensors, state={}))
    assert equal(whole, take(after, 3))


TRAIN = "import sys; from edm_ray.cli import main; sys.exit(main(sys.argv[1:]))"


def test_a_run_killed_and_resumed_is_bit_equal(tmp_path) -> None:
    """SIGKILL of the whole command, in its middle."""
    from edm_ray.cli import main

    main(["prepare", "digits", str(tmp_path / "data")])
    train = ["train", "--data", str(tmp_path / "data" / "train"), "--preset", "digits", "--workers", "0"]
    train += ["--device", "cuda", "--set", "total_kimg=38.4", "checkpoint_kimg=3.2"]
    assert main([*train, "--out", str(tmp_path / "calm")]) == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", TRAIN, *train, "--out", str(killed)])
    deadline = time.monotonic() + 120
    while len(read_metrics(str(killed))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model").exists()
    assert main([*train, "--out", str(killed)]) == 0
    for name in ("model.safetensors", "config.json"):
        assert (killed / "model" / name).read_bytes() == (tmp_path / "calm" / "model" / name).read_bytes()


@pytest.mark.parametrize("graph", [True, False])
def test_no_step_waits_for_the_device(graph: bool) -> None:
    """With augmentation, dropout and labels: torch raises where the host would wait."""
    step, pictures = step_of(small(f"graph={graph}".lower(), "precision=bf16")), Pictures()
    take(step, 2, pictures)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step.take(pictures)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("settings", [("precision=bf16",), ("precision=fp16", "loss_scale=1024"), ("precision=tf32",)])
def test_a_step_in_low_precision_follows_float32(settings: tuple[str, ...]) -> None:
    losses = []
    for own in ((), settings):
        step = step_of(small(*own))
        take(step, 12)
        losses.append(step.numbers()["loss"])
    print(settings, losses)
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def test_a_step_on_a_gpu_is_that_of_a_cpu_to_rounding() -> None:
    """Gradients of one round in float32. The CPU's network is laid out as the GPU's, or its masks were others."""
    grads = []
    for device in ("cpu", "cuda"):
        step = step_of(small("graph=false", "batch_size=8"), device)
        step.state.denoiser.to(memory_format=torch.channels_last)
        with torch.no_grad():
            for index, parameter in enumerate(step.state.denoiser.parameters()):
                draw = torch.Generator().manual_seed(index)
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw).to(parameter.device))
        step._gradient(Pictures())
        grads.append(torch.cat([p.grad.detach().cpu().double().flatten() for p in step.state.parameters]))
    error = float((grads[0] - grads[1]).norm() / grads[0].norm())
    print("gradient, GPU against CPU", error)
    assert error < 1e-4


def test_compiled_steps_neither_break_the_graph_nor_compile_again() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    one_level = ("precision=bf16", "denoiser.network.channel_mult=[1]", "denoiser.network.attn_resolutions=[]")
    step = step_of(small("compile=true", *one_level))
    take(step, 2)
    before = counters["stats"]["unique_graphs"]
    plain = step_of(small(*one_level))
    take(step, 4), take(plain, 6)
    assert counters["stats"]["unique_graphs"] == before == 1 and not counters["graph_break"]
    assert step.numbers()["loss"] == pytest.approx(plain.numbers()["loss"], rel=2e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_as_planned(precision: str) -> None:
    """CIFAR-10's network at 64 images, within 15 %."""
    config = configure(preset("cifar10-cond-vp-f", COLOUR), None, ["batch_size=64", f"precision={precision}"])
    gc.collect()  # what earlier tests left counts as there, and may go while this one runs
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    step = step_of(config)
    take(step, 2)
    peak = (torch.cuda.max_memory_allocated() - base) / 2**30
    planned = memory_gib(network_cost(config.denoiser, "cuda"), 64, precision).value
    print(precision, "peak", peak, "GiB, planned", planned)
    assert planned == pytest.approx(peak, rel=0.15)


def test_out_of_memory_names_a_micro_batch_that_fits() -> None:
    config = configure(preset("cifar10-cond-vp-f", COLOUR), None, ["batch_size=16384", "precision=bf16"])
    step = step_of(config)
    with pytest.raises(InputError, match="micro_batch=") as raised:
        step.take(Pictures())
    print(raised.value)
    fits = str(raised.value).partition("micro_batch=")[2].split()[0]
    del step, raised
    gc.collect()
    torch.cuda.empty_cache()
    again = step_of(configure(copy.deepcopy(config), None, [f"micro_batch={fits}", "batch_size=4096"]))
    again.take(Pictures())
    assert int(fits) >= 256
