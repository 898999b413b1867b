"""Tune spaces by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from edm_ray.errors import InputError
from edm_ray.search import shipped
from edm_ray.search.shipped import space_file, space_names
from edm_ray.search.space import load_space


def test_every_space_that_comes_with_the_package_has_its_name_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"cifar10", "imagenet64", "digits", shipped.BY_BUDGET} <= set(space_names())
    for name in space_names():
        assert load_space(space_file(name)).name


def test_a_file_of_ones_own_goes_before_a_name_and_what_is_neither_is_told_the_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cifar10").write_text("")
    assert space_file("cifar10") == "cifar10"
    with pytest.raises(InputError, match=r"tune_spaces/cifar1O.yaml: no such tune space \(did you mean 'cifar10'\?\)"):
        space_file("tune_spaces/cifar1O.yaml")


def test_in_a_wheel_the_spaces_lie_inside_the_package(tmp_path, monkeypatch):
    (tmp_path / "tune_spaces").mkdir()
    (tmp_path / "tune_spaces" / "mine.yaml").write_text("")
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path)
    assert space_names() == ["mine"]
