"""Checkpoints of a run (`store`) and model directories (`model`): safetensors and JSON, committed by a manifest."""

from edm_ray.models.directory import load_model, open_model, save_model

__all__ = ["load_model", "open_model", "save_model"]
