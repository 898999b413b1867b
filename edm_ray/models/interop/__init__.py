"""Models of other projects in and out. What a foreign file contains is read as data and never executed."""

from edm_ray.models.interop.nvlabs import Imported, from_official, import_pickle

__all__ = ["Imported", "from_official", "import_pickle"]
