"""A sampler as a field of what is read from JSON: its flat form becomes an object of its class."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator

from edm_ray.diffusion.samplers import Sampler, read_sampler


def _read(value: Any) -> Sampler:
    return value if isinstance(value, Sampler) else read_sampler(value, "sampler")


SamplerField = Annotated[Sampler, PlainValidator(_read)]
