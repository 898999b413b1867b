"""Files whose tensors are not those of the network they say they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edm_ray.errors import InputError
from edm_ray.models.interop import import_pickle
from tests.models.interop.foreign import CASES, foreign, snapshot, source_denoiser


def refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(InputError, match=says):
        import_pickle(str(tmp_path / "a.pkl"))


def test_a_missing_an_extra_and_a_misshapen_tensor_are_named_with_their_shapes(tmp_path: Path) -> None:
    source = source_denoiser("vp")
    conv = source.model.enc["8x8_conv"]
    bias = conv._parameters.pop("bias")
    refused(tmp_path, snapshot("vp", source), r"8x8_conv.bias': expected float32 \(16,\), it is missing \(1 in all\)")
    conv.register_parameter("bias", bias)
    conv.register_buffer("other", torch.zeros(3))
    refused(tmp_path, snapshot("vp", source), r"'model.enc.8x8_conv.other' float32 \(3,\) is not part of the network")
    del conv._buffers["other"]
    conv._parameters["bias"] = torch.nn.Parameter(torch.zeros(17))
    refused(tmp_path, snapshot("vp", source), r"'model.enc.8x8_conv.bias': expected float32 \(16,\), found .* \(17,\)")
    conv._parameters["bias"] = torch.nn.Parameter(torch.zeros(16, dtype=torch.float64))
    refused(tmp_path, snapshot("vp", source), r"expected float32 \(16,\), found float64 \(16,\)")
    conv._parameters["bias"] = torch.nn.Parameter(torch.full((16,), torch.nan))
    refused(tmp_path, snapshot("vp", source), "'model.enc.8x8_conv.bias' has values that are not finite")


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"img_resolution": 16}, "img_resolution is 16, but it was made with 8"),
        ({"label_dim": 7}, "label_dim is 7, but it was made with 4"),
        ({"_init_kwargs": None}, "does not say how it was made"),
        ({"_init_kwargs": {"img_resolution": 8}}, "'img_channels' is missing"),
        ({"_init_args": "ab"}, "positional arguments that do not fit"),
        ({"_init_kwargs": {**CASES["vp"][1], "attention": "new"}}, "unknown argument 'attention'"),
        ({"_init_kwargs": {**CASES["vp"][1], "model_channels": 32}}, r"expected float32 \(\d+"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], says: str
) -> None:
    original = foreign
    monkeypatch.setattr(
        "tests.models.interop.foreign.foreign",
        lambda module, name, text, **more: original(module, name, text, **{**more, **(extra if more else {})}),
    )
    refused(tmp_path, snapshot("vp", source_denoiser("vp")), says)


def test_positional_constructor_arguments_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs = {name: value for name, value in CASES["vp"][1].items() if name not in ("img_resolution", "img_channels")}
    original = foreign
    monkeypatch.setattr(
        "tests.models.interop.foreign.foreign",
        lambda module, name, text, **more: original(
            module, name, text, **{**more, **({"_init_args": (8, 3), "_init_kwargs": kwargs} if more else {})}
        ),
    )
    (tmp_path / "a.pkl").write_bytes(snapshot("vp", source_denoiser("vp")))
    assert import_pickle(str(tmp_path / "a.pkl")).config.network.img_resolution == 8


def test_tensors_with_other_strides_come_in_as_they_are_seen(tmp_path: Path) -> None:
    source = source_denoiser("vp").to(memory_format=torch.channels_last)
    wide = torch.zeros(3, 40)
    source.model.map_label._parameters["bias"] = torch.nn.Parameter(wide[1, 5:21])  # a view inside a storage
    (tmp_path / "a.pkl").write_bytes(snapshot("vp", source))
    state = import_pickle(str(tmp_path / "a.pkl")).state
    assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items())
    assert all(tensor.is_contiguous() for tensor in state.values())
