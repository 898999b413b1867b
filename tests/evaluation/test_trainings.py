"""Spread between trainings beside that of sampling, against made-up FIDs whose parts are known."""

from __future__ import annotations

import numpy as np
import pytest

from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.evaluation.trainings import spread

GROUPS, TRUTH = 73, 10.0


def drawn(rng, models: int, trainings: float, shared: float, own: float) -> list[FidEstimate]:
    """FIDs m + t_i + c + e_i of these standard deviations, with the influences that groups of images give."""
    both = rng.standard_normal(GROUPS) * shared / np.sqrt(GROUPS)
    found = []
    for theirs in rng.standard_normal((models, GROUPS)) * own / np.sqrt(GROUPS):
        parts = both + theirs
        fid = TRUTH + trainings * rng.standard_normal() + parts.sum()
        influence = tuple(parts - parts.mean())
        found.append(
            FidEstimate(fid=fid, debiased=fid - 1, se=0.1, n=1000, influence=influence, reference="r", extractor="e")
        )
    return found


@pytest.mark.parametrize("models", [2, 3, 5])
@pytest.mark.parametrize(("trainings", "shared", "own"), [(1.0, 0.2, 0.2), (0.1, 1.0, 0.2), (0.3, 0.3, 0.3)])
def test_the_interval_holds_the_mean_over_all_trainings_in_95_percent_of_draws(models, trainings, shared, own):
    rng = np.random.default_rng(0)
    draws = [spread(drawn(rng, models, trainings, shared, own)) for _ in range(600)]
    held = np.mean([each.low <= TRUTH <= each.high for each in draws])
    assert 0.93 <= held <= (0.995 if models == 2 else 0.985)  # half-widths in quadrature are a little wide


def test_the_parts_are_those_that_the_fids_were_made_of():
    rng = np.random.default_rng(1)
    draws = [spread(drawn(rng, 4, 0.5, 0.4, 0.2)) for _ in range(600)]
    parts = ("between", "sampling", "shared")
    variances = {name: np.mean([getattr(each, name) ** 2 for each in draws]) for name in parts}
    assert variances["between"] == pytest.approx(0.5**2 + 0.2**2, rel=0.1)
    assert variances["sampling"] == pytest.approx(0.2**2, rel=0.03)
    assert variances["shared"] == pytest.approx(0.4**2, rel=0.03)


@pytest.mark.parametrize("models", [2, 3, 5])
def test_equal_trainings_are_said_to_differ_in_five_percent_of_draws(models):
    rng = np.random.default_rng(2)
    draws = [spread(drawn(rng, models, 0.0, 0.5, 0.2)) for _ in range(400)]
    assert np.mean([each.differ for each in draws]) == pytest.approx(0.05, abs=0.035)
    unequal = [spread(drawn(rng, models, 2.0, 0.5, 0.2)) for _ in range(60)]
    assert np.mean([each.differ for each in unequal]) > 0.75


def test_the_sentence_says_what_was_seen():
    rng = np.random.default_rng(3)
    assert "No difference between the trainings is seen" in spread(drawn(rng, 3, 0.0, 0.5, 0.2)).sentence()
    assert "differ by more than sampling explains" in spread(drawn(rng, 3, 5.0, 0.5, 0.2)).sentence()


def test_one_model_and_fids_of_unequal_n_have_no_spread():
    rng = np.random.default_rng(4)
    one, other = drawn(rng, 2, 0.1, 0.1, 0.1)
    with pytest.raises(InputError, match="needs 2 models or more, got 1"):
        spread([one])
    with pytest.raises(InputError, match="different n"):
        spread([one, FidEstimate(**{**vars(other), "n": 500})])
