"""README.md of a model directory: a model card with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.storage.commit import canonical_json

_FIRST = ("preset", "dataset", "images_seen", "seed", "file", "sha256", "class_name")


PICTURE = "samples.png"


def model_card(config: DenoiserConfig, about: Mapping[str, Any], layout: str = "model", pictured: bool = False) -> str:
    """Markdown. pictured: PICTURE lies beside it.

    What ``about`` knows comes first in a fixed order; the licence is left to whoever publishes."""
    network = config.network
    condition = f"{network.label_dim} classes" if network.label_dim else "unconditional"
    size = network.img_resolution
    rows = [
        f"- network: {network.kind}, {network.img_channels}x{size}x{size}, {condition}",
        f"- preconditioning: {config.preconditioning.kind}",
    ]
    keys = [key for key in _FIRST if key in about] + sorted(key for key in about if key not in (*_FIRST, "metrics"))
    rows += [f"- {key}: {_text(about[key])}" for key in keys]
    metrics = about.get("metrics")
    if isinstance(metrics, Mapping) and metrics:
        rows += ["", "| metric | value |", "|---|---|"]
        rows += [f"| {_text(name)} | {_text(value)} |" for name, value in sorted(metrics.items())]
    picture = [f"![Samples of the model]({PICTURE})", ""] if pictured else []
    head = [*_front_matter(bool(network.label_dim)), "", "# EDM denoiser", "", *picture]
    return "\n".join([*head, *rows, "", *_USE[layout], ""])


def _text(value: Any) -> str:
    """One line; names of classes and files are foreign text, and no HTML, table or link comes of them."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(value).split()) if isinstance(value, (str, int)) else canonical_json(value)
    text = html.escape(text, quote=False)
    return text.replace("|", "&#124;").replace("`", "&#96;").replace("](", "]&#40;")


def _front_matter(conditional: bool) -> list[str]:
    tags = ["edm", "diffusion", "class-conditional" if conditional else "unconditional"]
    return [
        "---",
        "# license: add the identifier of the licence you publish under (converted official weights: cc-by-nc-sa-4.0)",
        "library_name: edm_ray",
        "pipeline_tag: unconditional-image-generation",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]


_USE = {
    "model": [
        "```python",
        "from edm_ray.models import load_model",
        "",
        'denoiser = load_model("DIR")  # D(x, sigma, class_labels): x [B, C, R, R], sigma [B]',
        "```",
        "",
        "`edm-ray generate --model DIR --out samples.png` draws images from it.",
    ],
    "diffusers": [
        "```python",
        "from safetensors.torch import load_file",
        "",
        'state = load_file("unet/diffusion_pytorch_model.safetensors")  # names of the official networks, float32',
        "```",
        "",
        "`unet/config.json` says which network and preconditioning they are of.",
    ],
}
