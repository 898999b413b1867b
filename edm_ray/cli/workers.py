"""``--workers``: how many processes share the work."""

from __future__ import annotations

from edm_ray.errors import InputError


def parse_workers(text: str) -> tuple[int, int]:
    """ "4" -> (4, 4); "2:8" -> (2, 8)."""
    least, colon, most = text.partition(":")
    if not least.isdecimal() or (colon and not most.isdecimal()):
        raise InputError(f"--workers {text}: give a number, or LEAST:MOST such as 2:8")
    numbers = int(least), int(most if colon else least)
    if numbers[0] < 1 or numbers[1] < numbers[0]:
        raise InputError(f"--workers {text}: give 1 or more, and MOST not below LEAST")
    return numbers
