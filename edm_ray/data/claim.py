"""Whose a destination of `edm-ray prepare` is: one plan's, and of two at the same moment one gets it."""

from __future__ import annotations

from typing import Any

from edm_ray.data.plan import REFUSED, SIDECAR, Plan
from edm_ray.data.write import disk_full_is_said
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.commit import read_manifest
from edm_ray.storage.versioned import read_json, to_text


def claim(dest: str, plan: Plan) -> None:
    """Make ``dest`` the place of this plan. Raises InputError when it holds another one (the differences are named), or
    anything that `prepare` did not put there. Another plan that could not succeed makes way: people who were told which
    options to give can give them."""
    path = uris.join(dest, SIDECAR, "plan.json")
    if uris.exists(path):
        try:
            refuse_other(dest, _read_plan(dest), plan)
            return
        except InputError:
            if not _was_refused(dest):
                raise
            _clear(dest)
    if found := uris.list_names(dest):
        raise InputError(
            f"{dest}: is not empty and was not begun by `edm-ray prepare` (found {', '.join(found[:4])}); "
            "choose another place"
        )
    with disk_full_is_said(dest, "free some and run the same command again"):
        if not uris.create_bytes(path, to_text(plan.to_json(), indent=1).encode()):
            refuse_other(dest, _read_plan(dest), plan)  # another process was a moment faster


def _was_refused(dest: str) -> bool:
    """Whether what was begun there ended because of one of its records."""
    return not is_complete(dest) and uris.exists(uris.join(dest, SIDECAR, REFUSED))


def _clear(dest: str) -> None:
    """The plan goes last: killed in between, it is still known whose the shards are."""
    for name in uris.list_names(dest):
        if name.endswith(".parquet"):
            uris.delete(uris.join(dest, name))
    uris.delete_directory(uris.join(dest, SIDECAR))


def _read_plan(dest: str) -> dict[str, Any]:
    return read_json(uris.join(dest, SIDECAR, "plan.json"), f"delete {dest} and prepare it again")


def is_complete(dest: str) -> bool:
    return read_manifest(dest) is not None


def refuse_other(dest: str, old: dict[str, Any], plan: Plan) -> None:
    """Raises InputError with what differs when ``dest`` is of another plan than this one."""
    before, now = _flat(old), _flat(plan.to_json())
    changed = [key for key in dict.fromkeys([*now, *before]) if before.get(key) != now.get(key)]
    # What was asked for says more than what follows from it.
    asked = [
        key for key in changed if key.startswith(("source.", "pictures.", "latents", "encoding", "on_error"))
    ] or changed
    if changed:
        what = "; ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in asked[:4])
        raise InputError(
            f"{dest}: was prepared from another source or with other options; what differs: {what}. "
            "Choose another place, or delete that one"
        )


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plan.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat
