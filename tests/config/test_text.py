"""YAML and --set of foreign origin: one line, within 2 s, whatever is in it."""

from __future__ import annotations

import time

import pytest

from edm_ray.config.load import configure, parse_overrides
from edm_ray.config.presets import DataShape, preset
from edm_ray.config.text import parse_yaml, read_yaml
from edm_ray.errors import InputError
from edm_ray.search.space import space_of

BASE = preset("digits", DataShape(resolution=8, channels=1, num_classes=10))
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"seed: \xff\xfe", "not UTF-8"),
        ("seed: 3".encode("utf-16"), "not UTF-8"),
        (b"a: " + b"[" * 20_000, "nested deeper than 32"),
        (b"a: " + b"[" * 20_000 + b"]" * 20_000, "nested deeper than 32"),
        (b"a: " + b"{a: " * 10_000, "nested deeper than 32"),
        (b"- " * 20_000, "nested deeper than 32"),
        (b"? " * 20_000, "nested deeper than 32|not valid YAML"),
        (b"".join(b" " * i + b"a:\n" for i in range(300)), "nested deeper than 32"),
        (BOMB.encode(), "more than 10,000 values"),
        (BOMB.replace("i: &i", "sigma_rels: &i").encode(), "more than 10,000 values"),
        (b"a: &a [*a]", "an alias inside of what it stands for"),
        (b"a: &a {b: *a}", "an alias inside of what it stands for"),
        (b"x" * 50_000_000, "at most 65,536 are "),
        (b"[1, 2]: 3", r"key \[1, 2\] is not allowed: a text"),
        (b"{a: 1}: 3", "is not allowed: a text"),
        (b"1: 2", "key 1 is not allowed: a text"),
        (b"true: 2", "key True is not allowed"),
        (b"a: !!timestamp 2001-99-99", "not valid YAML"),
        (b"a: !!int x", "not valid YAML"),
        (b"a: !!omap x", "not valid YAML"),
        (b"a: !!python/name:os.system", "not valid YAML"),
        (b"a: 'x", "not valid YAML"),
        (b"a: \x00", "not valid YAML"),
        (b"- a", "a mapping of keys"),
        (b"a: 1\na: 2", "given twice"),
        (b"a: 1\n---\na: 2", "not valid YAML"),
        (b"*x", "not valid YAML"),
        (b"<<: 3", "not valid YAML"),
        (b"a: !!float x", "not valid YAML"),
        (b"a: " + b"9" * 5_000, "not valid YAML"),
    ],
    ids=range(30),
)
def test_hostile_yaml_is_one_line_within_two_seconds(tmp_path, content, says):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    began = time.process_time()
    with pytest.raises(InputError, match=says) as caught:
        read_yaml(str(path))
    message = str(caught.value)
    assert time.process_time() - began < 2 and "\n" not in message and len(message) < 500


def test_plain_values_come_out():
    text = (
        "a: 010\nb: 1:30\nc: 2001-01-01\nd: 12\ne: -3\nf: 1.5\ng: true\nh: [1, x]\ni: &x [1]\nj: *x\nk: 1_000\nl: ~\n"
    )
    assert parse_yaml(text, "f") == {
        "a": "010", "b": "1:30", "c": "2001-01-01", "d": 12, "e": -3, "f": 1.5, "g": True, "h": [1, "x"],
        "i": [1], "j": [1], "k": 1000, "l": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("batch_size=true", "batch_size=True is not allowed: true and false are no numbers"),
        ("optimizer.lr=true", "true and false are no numbers"),
        ("ema.sigma_rels=[0.1, true]", "true and false are no numbers"),
        ("optimizer.lr=inf", "lr=inf is not allowed: a finite number"),
        ("optimizer.lr=nan", "lr=nan is not allowed"),
        ("optimizer.lr=.inf", "a finite number"),
        ("total_kimg=1e999", "a finite number"),
        ("denoiser.network.dropout=.nan", "is not allowed"),
        ("seed=-1", "seed=-1 is not allowed"),
        ("seed=9223372036854775808", "seed=9223372036854775808 is not allowed"),
        ("seed=[", "--set .*not valid YAML"),
        ("seed='", "not valid YAML"),
        ("seed={a: 1}", "seed="),
        ("seed=&a [*a]", "alias inside"),
        ("seed=" + "[" * 20_000, "nested deeper"),
        ("=3", "expected KEY=VALUE"),
        (".=3", "is no key"),
        ("a..b=3", "is no key"),
        (".".join("a" * 5_000) + "=3", "is no key"),
        ("seed=" + "x" * 10_000, "seed="),
        ("x" * 10_000 + "=1", "unknown key"),
        ("optimizer=" + "x" * 10_000, "optimizer holds several settings"),
        ("precision=" + "x" * 10_000, "precision="),
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_refused_without_repeating_it_at_length(pair, says):
    with pytest.raises(InputError, match=says) as caught:
        configure(BASE, None, [pair])
    assert max(map(len, str(caught.value).split())) <= 200 and "\n" not in str(caught.value)


def test_seed_010_is_ten():
    assert configure(BASE, None, ["seed=010"]).seed == 10
    assert configure(BASE, None, ["xflip=true"]).xflip is True


def test_values_of_set_are_yaml():
    assert parse_overrides(["a.b=[1, 2]", "a.c=x"]) == {"a": {"b": [1, 2], "c": "x"}}


@pytest.mark.parametrize("name", ["a/b", "../x", "..", "", "a\nb", "x" * 200, "a\0b", 3])
def test_a_name_that_would_become_a_path_is_refused(name):
    with pytest.raises(InputError, match="name"):
        space_of({"name": name, "search": {"churn_fraction": {"low": 0, "high": 1}}}, "s.yaml")
