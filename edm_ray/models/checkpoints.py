"""Checkpoints of one run, named by images seen. One exists only when its manifest does.

Retention deletes what is older than the newest ``keep`` whole ones; damaged ones, or those that lack a file, do not
count. A damaged checkpoint is named, and the one before it is used. One of another run is refused, never resumed. What
else lies there (a copy by hand, ``nimg-000000000600.bak``) is named and left alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from edm_ray.errors import InputError, IntegrityError, shortened
from edm_ray.models.weights import tensors_of
from edm_ray.storage import uris
from edm_ray.storage.commit import MANIFEST, check_keys, commit, read_file, read_manifest
from edm_ray.storage.documents import SMALL_BYTES, load_json
from edm_ray.storage.numbered import numbers

logger = logging.getLogger(__name__)
KIND = "edm_ray checkpoint"
NAME = "nimg-{:012d}"
STATE = "state.json"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    images_seen: int
    tensors: dict[str, Tensors]
    """File stem ("model", "ema", "optimizer") -> named tensors."""
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints under one URI. run: identity of the run that writes and resumes here; '' only looks."""

    def __init__(self, uri: str, keep: int = 2, run: str = "") -> None:
        assert keep >= 2
        self.uri, self.keep, self.run = uri, keep, run
        self._whole: set[int] = set()
        """Known to be so: written or read by this store."""

    def _path(self, images_seen: int) -> str:
        return uris.join(self.uri, NAME.format(images_seen))

    def committed(self) -> list[int]:
        """Images seen of every checkpoint that has its manifest, ascending."""
        found = numbers(self.uri, NAME)
        return [number for number in found if uris.exists(uris.join(self._path(number), MANIFEST))]

    def save(self, images_seen: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
        """Commit a checkpoint, then let go of those older than the newest ``keep`` whole ones."""
        files = [
            (f"{stem}.safetensors", safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in part.items()}))
            for stem, part in tensors.items()
        ]
        files.append((STATE, json.dumps(dict(state), sort_keys=True, allow_nan=False).encode()))
        facts = {"kind": KIND, "images_seen": images_seen, "run": self.run}
        commit(self._path(images_seen), files, self._is_damaged(images_seen), **facts)
        self._whole.add(images_seen)
        for old in self._superseded():
            try:
                uris.delete_directory(self._path(old))
            except OSError as error:
                logger.warning("%s: could not delete an old checkpoint: %s", self._path(old), error)
        uris.clear_unfinished(self.uri)  # of attempts that were killed

    def _superseded(self) -> list[int]:
        """Older than the newest ``keep`` whole ones. What this store has not seen yet is read: once, after a start."""
        whole, committed = 0, self.committed()
        for index in reversed(range(len(committed))):
            images_seen = committed[index]
            if whole == self.keep:
                return committed[: index + 1]
            if images_seen not in self._whole:
                try:
                    self.load(images_seen)
                except IntegrityError as error:
                    logger.warning("damaged checkpoint, one more is kept instead: %s", error)
                    continue
            whole += 1
        return []

    def _is_damaged(self, images_seen: int) -> bool:
        """Whether the checkpoint of this name was passed over by `latest`: then, and only then, it is replaced."""
        if not uris.exists(uris.join(self._path(images_seen), MANIFEST)):
            return False
        try:
            self.load(images_seen)
        except IntegrityError:
            return True
        return False

    def load(self, images_seen: int) -> Checkpoint:
        """One checkpoint, every file checked. Raises IntegrityError, and InputError for one of another run."""
        uri = self._path(images_seen)
        try:
            checkpoint = self._load(uri, images_seen)
        except uris.NotFound as error:
            raise IntegrityError(f"{error}, though {uris.join(uri, MANIFEST)} lists it") from error
        self._whole.add(images_seen)
        return checkpoint

    def _load(self, uri: str, images_seen: int) -> Checkpoint:
        manifest = read_manifest(uri)
        if manifest is None or manifest.get("kind") != KIND:
            raise IntegrityError(f"{uri}: no checkpoint")
        if self.run and manifest.get("run") != self.run:
            raise InputError(
                f"{uri}: a checkpoint of run {manifest.get('run') or 'unknown'}, this run is {self.run} (run.json); it "
                "is not resumed: delete that checkpoint, or give --fresh to delete the run and start over"
            )
        check_keys(manifest, uris.join(uri, MANIFEST), ["images_seen", "run"])
        others = [name for name in manifest["files"] if name != STATE and not name.endswith(".safetensors")]
        if others:
            raise IntegrityError(
                f"{uris.join(uri, MANIFEST)}: lists {shortened(others[0])}; not a checkpoint of this version"
            )
        if manifest.get("images_seen") != images_seen:
            raise IntegrityError(f"{uri}: holds the checkpoint at {manifest.get('images_seen')} images")
        tensors = {
            name.removesuffix(".safetensors"): tensors_of(read_file(uri, name, manifest), uris.join(uri, name))
            for name in manifest["files"]
            if name.endswith(".safetensors")
        }
        state = load_json(read_file(uri, STATE, manifest), uris.join(uri, STATE), SMALL_BYTES)
        if not isinstance(state, dict):
            raise IntegrityError(f"{uris.join(uri, STATE)}: a mapping is needed, got {shortened(state)}")
        return Checkpoint(images_seen=images_seen, tensors=tensors, state=state)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; damaged ones are named in a warning and passed over.

        Raises IntegrityError when there are checkpoints but none of them is whole: starting over is not a fallback.
        """
        damaged: IntegrityError | None = None
        for images_seen in reversed(self.committed()):
            try:
                return self.load(images_seen)
            except IntegrityError as error:
                logger.warning("damaged checkpoint, falling back to the one before: %s", error)
                damaged = error
        if damaged is not None:
            raise IntegrityError(f"{damaged}; no whole checkpoint is left in {self.uri}: use --fresh to start over")
        return None
