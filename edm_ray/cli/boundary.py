"""Where errors become one line for people: everything that the machine refuses, with the path, and no traceback."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.storage.commit import require_no_other
from edm_ray.storage.s3 import StorageError

PLACES = ("out", "dest", "store")
"""Options of commands that name a place to write to."""
FILE_BY_FILE = ("train", "evaluate", "sweep", "explain", "generate")
"""Commands that write into a folder that grows."""
MOST_CHARACTERS = 2000
_LONG_WORD = re.compile(r"\S{201,}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
logger = logging.getLogger(__name__)


@contextmanager
def machine_errors() -> Iterator[None]:
    """What the file system, the memory and text encodings refuse, as InputError."""
    try:
        yield
    except StorageError:
        raise  # an end in good order, which has a line of its own
    except (OSError, UnicodeError, MemoryError) as error:
        logger.debug("the error behind the line", exc_info=True)
        raise InputError(described(error)) from error


def described(error: OSError | UnicodeError | MemoryError) -> str:
    """One line: the path, what happened, what to do."""
    if isinstance(error, MemoryError):
        return "out of memory; give smaller sizes (batches, pictures, workers), or a machine with more"
    if isinstance(error, UnicodeError):
        return f"text that is not UTF-8 or cannot be shown: {error}; rename the file, or set PYTHONUTF8=1"
    if not error.strerror:
        return str(error) or type(error).__name__  # StorageError says it all
    paths = " and ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
    where = f"{paths}: " if paths else ""
    if error.errno in _FULL:
        return f"{where}no space left on the disk; free some and run the same command again"
    fix = " for this user: allow it, or give another place" if isinstance(error, PermissionError) else ""
    return f"{where}{error.strerror}{fix}"


def one_line(message: str) -> str:
    """A message without line ends, long values and terminal codes."""
    printable = "".join(char if char.isprintable() else " " for char in message)
    text = _LONG_WORD.sub(lambda word: f"{word[0][:150]}...", " ".join(printable.split()))
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 400]} ... {text[-390:]}"


def check_places(name: str, args: Any) -> None:
    """Before any work of command ``name``, also of ``--dry-run``: the places to write to can be written to, at the S3
    endpoint that is asked for, and are not something else. Raises InputError."""
    if endpoint := getattr(args, "endpoint_url", None):
        os.environ["AWS_ENDPOINT_URL"] = endpoint
    for option in PLACES:
        place = getattr(args, option, None)
        if isinstance(place, str) and place:
            uris.check_writable(place)
            if name in FILE_BY_FILE:
                # A data set of samples that a killed command left is its own; what else is there, it says itself.
                own = getattr(args, "format", None) == "parquet"
                require_no_other(place, "edm_ray data set" if own else None)
            if name != "prepare":  # which says more about what is there
                require_no_pictures(place)


def require_no_pictures(place: str) -> None:
    """Raises InputError for a folder of pictures, or of a folder a class: a user's own, which stay as they are."""
    names = uris.list_names(place)
    found = [name for name in names if _is_picture(name) and not _is_own(name)]
    if not found and not any("." in name for name in names):
        found = [f"{name}/{each}" for name in names[:3] for each in uris.list_names(uris.join(place, name))[:3]]
        found = [name for name in found if _is_picture(name) and not _is_own(name.rpartition("/")[2])]
    if found:
        raise InputError(
            f"{place}: holds pictures ({found[0]}); other files must not mix with them: give another place"
        )


def _is_picture(name: str) -> bool:
    from edm_ray.data.importers.source import PICTURE_SUFFIXES  # pyarrow: after the first word

    return name.lower().endswith(PICTURE_SUFFIXES)


def _is_own(name: str) -> bool:
    """Whether a command writes pictures of such names into a folder."""
    from edm_ray.cli.explain import FIGURES
    from edm_ray.generation.outputs import SAMPLE
    from edm_ray.report.saved import GRID

    return any(pattern.fullmatch(name) for pattern in (SAMPLE, GRID)) or name.removesuffix(".png") in FIGURES
