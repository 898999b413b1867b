"""The tables of research/scale and the bills say what their model says, which keeps to what must be true of any."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edm_ray.cli.plan import _on_gpus
from edm_ray.config.presets import preset
from edm_ray.config.published import V100_HOURS, Range, scaling_costs
from edm_ray.config.shape import DataShape
from edm_ray.networks.cost import network_cost
from edm_ray.search.plan import SweepPlan
from edm_ray.training.cost import all_reduce, costs_at, exposed, on_gpus, workload
from research.scale.model import MEASURED, WORKLOADS, SweepLoad, sweep, two_processes
from research.scale.two_processes import IMAGES
from tests.cluster.manifests import ROOT


def test_the_tables_and_bills_are_what_the_model_says():
    command = [sys.executable, "-m", "research.scale.tables", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_cost_says_where_it_is_from_and_which_end_is_better():
    for entry in scaling_costs().values():
        assert entry.kind in ("measured", "published", "assumed") and entry.source, entry.name
    better, worse = costs_at(better=True), costs_at(better=False)
    for work in WORKLOADS:
        load = SweepLoad(work, SweepPlan(), 2, 16)
        for count in (8, 64, 512):
            good, bad = on_gpus(work.train, count, better), on_gpus(work.train, count, worse)
            assert good.hours <= bad.hours and good.dollars <= bad.dollars
            assert 0 < bad.efficiency <= good.efficiency <= 1
            good, bad = sweep(load, count, True, better), sweep(load, count, False, worse)
            assert good.hours <= bad.hours and 0 < good.efficiency <= 1


@pytest.mark.parametrize(
    ("name", "key", "shares"),
    [
        ("host", "host_step_s", (0.2, 1.0)),
        ("read", "read_png_images_per_core_s", (1.0, 1.0)),
        ("fid", "fid_s", (1.0, 1.0)),
        ("sums", "chunk_sums_s", (1.0, 1.0)),
        ("task", "task_of_many_s", (1.0, 1.0)),
    ],
)
def test_costs_that_say_they_were_measured_are_those_of_the_file(name, key, shares):
    entry = scaling_costs()[name]
    ends = sorted(MEASURED[key], reverse=name == "read")  # a rate: more is better
    assert (entry.better, entry.worse) == (ends[0] * shares[0], ends[1] * shares[1])
    assert "research/scale/measured.json" in entry.source


def test_without_losses_the_model_is_the_paper_s_own_number():
    """One V100 with free host, network and storage: 384 V100 hours by construction."""
    ideal = {"half_batch": 0, "host": 0, "hop": 0, "lost": 0, "a100_by_v100": 1, "hidden": 1}
    table = scaling_costs()
    for name, value in ideal.items():
        entry = table[name]
        table[name] = Range(entry.name, value, value, entry.unit, entry.kind, entry.source)
    found = on_gpus(WORKLOADS[0].train, 1, costs_at(True, table))
    assert found.hours == pytest.approx(384, rel=1e-6) and found.efficiency == pytest.approx(1)


def test_a_recipe_of_the_paper_is_the_workload_of_the_tables():
    config = preset("cifar10-cond-vp-f", DataShape(resolution=32, channels=3, num_classes=10))
    found, known = workload("cifar10-cond-vp-f", config, network_cost(config.denoiser)), WORKLOADS[0].train
    assert (found.images, found.batch, found.hours) == (known.images, known.batch, V100_HOURS["cifar10"])
    assert found.gradient_bytes == pytest.approx(known.gradient_bytes, rel=1e-3)


def test_the_model_of_two_processes_agrees_with_two_processes_as_far_as_both_are_known():
    """Their ranges meet, for steps that are mostly all-reduce and for steps that are mostly compute."""
    for images in IMAGES:
        low, high = MEASURED[f"ddp_{images}_together_s"]
        better, worse = (two_processes(images, end, costs_at(end)) for end in (True, False))
        assert better <= high and low <= worse, images
    assert exposed(1.0, 0.5, costs_at(False)) == 0.5 and exposed(1.0, 0.5, costs_at(True)) == 0.0


def test_an_all_reduce_moves_every_byte_twice_and_costs_nothing_alone():
    costs = costs_at(better=True)
    assert all_reduce(1, 1e9, costs) == 0
    assert all_reduce(2, 1e9, costs) == pytest.approx(1e9 / costs["link_bandwidth"])
    assert all_reduce(8, 1e9, costs) < all_reduce(16, 1e9, costs) < all_reduce(512, 1e9, costs)


def test_a_dry_run_for_gpus_says_how_many_would_share_the_run():
    config = preset("cifar10-cond-vp-f", DataShape(resolution=32, channels=3, num_classes=10))
    text = _on_gpus(workload("cifar10-cond-vp-f", config, network_cost(config.denoiser)), 64)
    assert text.startswith("64 A100: 2.6 to 16 hours by the clock, efficiency 20% to 76%, first bottleneck: host")
