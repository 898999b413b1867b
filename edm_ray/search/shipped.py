"""The tune spaces that come with the package, by name: the files of tune_spaces/."""

from __future__ import annotations

from pathlib import Path

from edm_ray.errors import InputError, nearest

PACKAGE = Path(__file__).parents[1]
BY_BUDGET = "any-budget"
"""What a sweep with --nfe searches where nothing else is said."""


def spaces_folder() -> Path:
    """Inside the package where it was installed from a wheel, beside it in a clone."""
    packed = PACKAGE / "tune_spaces"
    return packed if packed.is_dir() else PACKAGE.parent / "tune_spaces"


def space_names() -> list[str]:
    return sorted(path.stem for path in spaces_folder().glob("*.yaml"))


def space_file(given: str) -> str:
    """A file of one's own, or the name of a space that comes with the package -> the file. Raises InputError naming
    those there are."""
    if Path(given).is_file():
        return given
    names = space_names()
    if given in names:
        return str(spaces_folder() / f"{given}.yaml")
    close = nearest(Path(given).stem, names)
    raise InputError(f"{given}: no such tune space{close}: give a file, or one of these names: {', '.join(names)}")
