"""One class a kind, one flat form in files and --set; constants have one home; every written file says its version."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import edm_ray
from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.identity import identity, identity_fields
from edm_ray.config.load import configure, to_flat, to_yaml, validate
from edm_ray.config.network import ADM, DDPMpp, NCSNpp, OwnNetwork
from edm_ray.config.preconditioning import EDMPreconditioning, VEPreconditioning, VPPreconditioning
from edm_ray.config.presets import PRESETS, preset
from edm_ray.config.shape import DataShape
from edm_ray.config.training import TrainingConfig
from edm_ray.errors import InputError

D = "denoiser.preconditioning"
SHAPE = DataShape(resolution=8, channels=1, num_classes=10)


def digits(*pairs: str) -> TrainingConfig:
    return configure(preset("digits", SHAPE), None, pairs)


def test_another_kind_drops_the_old_kinds_fields_and_takes_its_own_defaults() -> None:
    assert preset("digits", SHAPE).denoiser.preconditioning == EDMPreconditioning(sigma_data=0.75)
    assert digits("denoiser.preconditioning.kind=vp").denoiser.preconditioning == VPPreconditioning()
    ve = digits("denoiser.preconditioning.kind=ve", "denoiser.preconditioning.sigma_max=50")
    assert ve.denoiser.preconditioning == VEPreconditioning(sigma_max=50.0)


def test_another_network_keeps_sizes_and_takes_the_form_of_its_kind() -> None:
    before = digits().denoiser.network
    ncsnpp, adm = (digits(f"denoiser.network.kind={kind}").denoiser.network for kind in ("ncsnpp", "adm"))
    assert isinstance(before, DDPMpp) and isinstance(ncsnpp, NCSNpp) and isinstance(adm, ADM)
    assert (ncsnpp.encoder_type, ncsnpp.resample_filter) == ("residual", (1, 3, 3, 1))
    for network in (ncsnpp, adm):
        assert (network.img_resolution, network.model_channels, network.label_dim) == (8, before.model_channels, 10)
    own = digits("denoiser.network.kind=own", "denoiser.network.class_path=mine.Net").denoiser.network
    assert own == OwnNetwork(img_resolution=8, img_channels=1, label_dim=10, class_path="mine.Net")


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([f"{D}.beta_d=5"], f"--set: {D}.beta_d=5 is not allowed: it belongs to vp, the kind is edm"),
        ([f"{D}.kind=vp", f"{D}.c_1=1"], "it belongs to iddpm, the kind is vp"),
        ([f"{D}.kind=vpp"], f"{D}.kind='vpp' is not allowed: edm, vp, ve, iddpm"),
        ([f"{D}.sigma_dat=1"], "did you mean 'sigma_data'"),
        (["denoiser.network.kind=adm", "denoiser.network.encoder_type=skip"], "to ddpmpp and ncsnpp, the kind is adm"),
        (["objective.beta_d=5"], "objective.beta_d=5 is not allowed: it belongs to vp, the kind is edm"),
        ([f"{D}.kind=vp", f"{D}.beta_d=x"], f"{D}.beta_d='x'"),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_refused_with_the_kind_that_has_it(pairs: list[str], says: str) -> None:
    with pytest.raises(InputError) as caught:
        digits(*pairs)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_the_flat_form_is_plain_json_and_gives_the_same_classes_and_identity_back(name: str) -> None:
    config = preset(name, SHAPE)
    flat = json.loads(json.dumps(to_flat(config), allow_nan=False))
    again = validate(TrainingConfig, flat, "here")
    assert again == config and type(again.denoiser.network) is type(config.denoiser.network)
    assert identity(identity_fields(again, "d")) == identity(identity_fields(config, "d"))
    assert json.dumps(to_flat(again)) == json.dumps(to_flat(config))


def test_a_foreign_field_in_a_stored_file_is_refused() -> None:
    flat: dict[str, Any] = to_flat(DenoiserConfig())
    flat["preconditioning"]["beta_d"] = 5
    with pytest.raises(InputError, match=r"config.json: preconditioning.beta_d=5 .* belongs to vp, the kind is edm"):
        validate(DenoiserConfig, flat, "config.json")


def test_constants_that_are_not_table_1s_are_in_the_identity() -> None:
    vp = ["denoiser.preconditioning.kind=vp", "objective.kind=vp"]
    plain, other = (identity_fields(digits(*vp, *more), "") for more in ([], ["denoiser.preconditioning.beta_d=5"]))
    assert other.keys() - plain.keys() == {"denoiser.preconditioning.beta_d"}
    assert identity(plain) != identity(other)


def test_written_files_carry_a_format_version_and_another_version_is_refused(tmp_path: Path) -> None:
    text, path = to_yaml(digits()), tmp_path / "config.yaml"
    assert yaml.safe_load(text)["format"] == 1
    path.write_text(text)
    assert configure(preset("tiny", SHAPE), str(path)) == digits()
    path.write_text(text.replace("format: 1", "format: 2"))
    with pytest.raises(InputError, match="format=2 is not allowed: this version of edm_ray reads format 1"):
        configure(preset("tiny", SHAPE), str(path))


def test_the_configuration_loads_without_torch() -> None:
    code = "import sys, edm_ray.config.load, edm_ray.config.presets as p; assert 'torch' not in sys.modules; p.PRESETS"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_constants_of_table_1_are_written_in_one_file() -> None:
    """As numbers in code; what the documentation strings say of them is not looked at."""
    constants = r"(?<![\w.])(19\.9|0\.008|0\.02|1e-5)(?![\w.])"
    root = Path(edm_ray.__file__).parent
    homes = {
        path.relative_to(root).as_posix()
        for part in ("config", "diffusion", "networks", "models", "training")
        for path in (root / part).rglob("*.py")
        if re.search(rf": (float|int)( \| None)? = {constants}", path.read_text())
    }  # fmt: skip
    others = {"networks/unet.py", "diffusion/samplers/rk45.py"}  # an eps of normalisation, a tolerance
    assert homes - others == {"diffusion/noise.py"}
