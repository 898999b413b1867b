"""Everything that is wrong with a source, in one line: one run of `prepare` names all that people have to decide.

A record that cannot be used is tried again as if what it asks for had been given, so that a picture that is transparent
and not square is named for both.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edm_ray.data.format import Pixels
from edm_ray.data.importers.pictures import PictureOptions
from edm_ray.data.importers.source import LabelError, Record, RecordError, Source, check_label
from edm_ray.errors import InputError

SECONDS = 20.0
"""A large source is looked through for so long."""
MOST_KINDS = 6
"""Named in one line."""
TRIES = 8
Sample = Callable[[Record, PictureOptions], Pixels]
"""What is stored of a record. Raises RecordError."""


class Refused(InputError):
    """Records of a source cannot be used as they are."""


@dataclass
class Complaint:
    """One kind of thing that is wrong."""

    first: RecordError
    count: int = 1


class Complaints:
    """Those of a source, by kind, in the order in which they are found."""

    def __init__(self) -> None:
        self.kinds: dict[str, Complaint] = {}
        self.records = self.bad = 0

    def look(self, source: Source, pictures: PictureOptions, sample: Sample, class_names: Sequence[str]) -> Complaints:
        """Through all records, as far as the time goes. Returns itself."""
        ends, shape, first = time.monotonic() + SECONDS, tuple[int, ...](), ""
        for index in range(len(source)):
            if time.monotonic() > ends:
                break
            self.records += 1
            pixels, name, found = _tried(source, index, pictures, sample, class_names)
            if pixels is not None and not found and not shape:
                shape, first = pixels.shape, name
            if pixels is not None and shape:
                found += _misshapen(
                    pixels, name, shape, first, sized=any("resolution" in each.change for each in found)
                )
            self.bad += bool(found)
            for error in found:
                self._add(error)
        return self

    def _add(self, error: RecordError) -> None:
        kind = ",".join(error.change) or re.sub(r"\d+", "N", str(error).rpartition(": ")[2])
        if kind in self.kinds:
            self.kinds[kind].count += 1
        else:
            self.kinds[kind] = Complaint(error)

    def refusal(self, where: str, error: RecordError) -> Refused:
        """``error`` alone where it is all that is wrong, else every kind with its first record and the options that
        settle all of them."""
        if sum(each.count for each in self.kinds.values()) <= 1:
            return Refused(f"{where}: {error}{_way_out(error)}")
        if len(self.kinds) == 1:
            [one] = self.kinds.values()
            return Refused(f"{where}: {one.first}{_way_out(one.first)} ({one.count:,} such records)")
        listed = [f"{each.first}{_such(each.count)}" for each in list(self.kinds.values())[:MOST_KINDS]]
        more = f"; and {len(self.kinds) - MOST_KINDS} more kinds" if len(self.kinds) > MOST_KINDS else ""
        options = [f"--{name} {value}" for each in self.kinds.values() for name, value in each.first.change.items()]
        options = [*dict.fromkeys(option.replace("resolution 32", "resolution R") for option in options)]
        if any(isinstance(each.first, LabelError) for each in self.kinds.values()):
            options.append("--unlabelled")
        hopeless = [each for each in self.kinds.values() if not each.first.change]
        settled = f"for example {' '.join(options)}{' --on-error skip' if hopeless else ''}" if options else ""
        return Refused(
            f"{where}: {'; '.join(listed)}{more}. {self.bad:,} of {self.records:,} records cannot be used as they are: "
            f"{f'give {settled}; ' if settled else ''}--on-error skip alone leaves them all out"
        )


def _such(count: int) -> str:
    return f" ({count:,} such records)" if count > 1 else ""


def _way_out(error: RecordError) -> str:
    """An option for the one record; every such line names one."""
    if " --" in str(error):
        return ""
    if isinstance(error, LabelError):
        return "; give --unlabelled to leave labels out, or --on-error skip"
    return "; --on-error skip leaves such records out"


def _tried(
    source: Source, index: int, pictures: PictureOptions, sample: Sample, class_names: Sequence[str]
) -> tuple[Pixels | None, str, list[RecordError]]:
    """A record's pixels, its name, and all that had to be granted for them; no pixels where nothing helps."""
    found: list[RecordError] = []
    try:
        record = source.record(index)
    except RecordError as error:
        return None, "", [error]
    try:
        check_label(record.label, class_names, record.name)
    except RecordError as error:
        found.append(error)
    for _ in range(TRIES):
        try:
            return sample(record, pictures), record.name, found
        except RecordError as error:
            found.append(error)
            if not error.change:
                break
            pictures = dataclasses.replace(pictures, **error.change)
    return None, record.name, found


def check_shape(pixels: Pixels, name: str, shape: tuple[int, ...], first: str) -> None:
    """Raises RecordError for a picture that is not like the first one."""
    if pixels.shape != shape:
        channels = pixels.shape[0] != shape[0]
        fix = "--mode rgb or grey" if channels else "--resolution R to crop and resize"
        raise RecordError(
            f"{name}: {pixels.shape} (channels, height, width), {first} has {shape}; give {fix}",
            change={"mode": "rgb"} if channels else {"resolution": 32},
        )


def _misshapen(pixels: Pixels, name: str, shape: tuple[int, ...], first: str, sized: bool) -> list[RecordError]:
    """sized: a resolution was granted already, so only the channels are compared."""
    if sized and pixels.shape[0] == shape[0]:
        return []
    try:
        check_shape(pixels, name, shape, first)
    except RecordError as error:
        return [error]
    return []
