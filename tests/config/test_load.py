from __future__ import annotations

import pytest

from edm_ray.config.identity import differences, identity, identity_fields
from edm_ray.config.load import configure, to_yaml
from edm_ray.config.presets import PRESETS, DataShape, preset
from edm_ray.config.text import parse_yaml
from edm_ray.errors import InputError

SHAPE = DataShape(resolution=8, channels=1, num_classes=10)


def test_set_wins_over_file_and_file_over_preset(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\noptimizer: {lr: 1e-3}\n")
    config = configure(preset("digits", SHAPE), str(path), ["seed=4"])
    assert (config.seed, config.optimizer.lr) == (4, 1e-3)
    assert config.ema == preset("digits", SHAPE).ema


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_own_yaml(name, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(preset(name, SHAPE)))
    assert configure(preset("tiny", SHAPE), str(path)) == preset(name, SHAPE)


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("optimizer.learning_rate=1", "unknown key 'optimizer.learning_rate'"),
        ("ema.halflife_king=5", "did you mean 'halflife_kimg'"),
        ("batch_size=many", "batch_size='many'"),
        ("batch_size=0", "batch_size=0 is not allowed: at least 1"),
        ("denoiser.network.dropout=1.5", "network.dropout=1.5 is not allowed"),
        ("optimizer=3", "optimizer holds several settings"),
        ("seed", "expected KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(pair, says):
    with pytest.raises(InputError) as error:
        configure(preset("digits", SHAPE), None, [pair])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_yaml_traps_are_handled():
    with pytest.raises(InputError, match="given twice"):
        parse_yaml("a: 1\na: 2\n", "f.yaml")
    with pytest.raises(InputError, match="mapping"):
        parse_yaml("- 1\n", "f.yaml")
    with pytest.raises(InputError, match=r"f\.yaml: not valid YAML"):
        parse_yaml("a: !!python/object/apply:os.system ['true']\n", "f.yaml")


def test_identity_ignores_length_and_sees_everything_that_decides_the_result():
    base = preset("digits", SHAPE)
    same = configure(base, None, ["total_kimg=999", "checkpoint_kimg=1"])
    other = configure(base, None, ["optimizer.lr=0.1"])
    fields = identity_fields(base, "data")
    assert identity(fields) == identity(identity_fields(same, "data"))
    assert identity(fields) != identity(identity_fields(base, "other data"))
    assert differences(fields, identity_fields(other, "data")) == ["optimizer.lr: 0.002 -> 0.1"]


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'digits'"):
        preset("digit", SHAPE)
