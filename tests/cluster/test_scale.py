"""docs/scale.md and the bills say what their model says, and the model keeps to what must be true of any."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cluster.manifests import ROOT


@pytest.fixture(scope="module")
def model():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import scale_model

        yield scale_model
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_the_tables_and_bills_are_what_the_model_says():
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_input_says_where_it_is_from_and_which_end_is_better(model):
    for entry in model.INPUTS.values():
        assert entry.kind in ("measured", "published", "assumed") and entry.source, entry.name
    better, worse = model.Costs(better=True), model.Costs(better=False)
    for work in model.WORKLOADS:
        for count in (8, 64, 512):
            good, bad = model.train(work, count, better), model.train(work, count, worse)
            assert good.hours <= bad.hours and good.dollars <= bad.dollars
            assert 0 < bad.efficiency <= good.efficiency <= 1
            plan = model.SweepPlan()
            good, bad = (model.sweep(work, count, costs, plan, 2, 16) for costs in (better, worse))
            assert good.hours <= bad.hours and 0 < good.efficiency <= 1


def test_without_losses_the_model_is_the_paper_s_own_number(model, monkeypatch):
    """One V100 with free host, network and storage: 384 V100 hours by construction."""
    ideal = {"half_batch": 0, "host": 0, "hop": 0, "lost": 0, "a100_by_v100": 1, "hidden": 1}
    for name, value in ideal.items():
        entry = model.INPUTS[name]
        monkeypatch.setitem(
            model.INPUTS, name, model.Input(entry.name, value, value, entry.unit, entry.kind, entry.source)
        )
    found = model.train(model.WORKLOADS[0], 1, model.Costs(better=True))
    assert found.hours == pytest.approx(384, rel=1e-6) and found.efficiency == pytest.approx(1)


def test_the_model_of_two_processes_agrees_with_two_processes_as_far_as_both_are_known(model):
    """Their ranges meet, for steps that are mostly all-reduce and for steps that are mostly compute."""
    from scale_ddp import IMAGES

    for images in IMAGES:
        low, high = model.MEASURED[f"ddp_{images}_together_s"]
        better, worse = (model.two_processes(images, model.Costs(better=end)) for end in (True, False))
        assert better <= high and low <= worse, images
    assert (
        model.exposed(1.0, 0.5, model.Costs(better=False)) == 0.5
        and model.exposed(1.0, 0.5, model.Costs(better=True)) == 0.0
    )


def test_an_all_reduce_moves_every_byte_twice_and_costs_nothing_alone(model):
    costs = model.Costs(better=True)
    assert model.all_reduce(1, 1e9, costs) == 0
    assert model.all_reduce(2, 1e9, costs) == pytest.approx(1e9 / costs["link_bandwidth"])
    assert model.all_reduce(8, 1e9, costs) < model.all_reduce(16, 1e9, costs) < model.all_reduce(512, 1e9, costs)
