"""A second opinion: what another reference, of another extractor mostly, says of the samplers that were confirmed.

A search that minimises one metric may find what only that metric likes. The second one decides nothing; it warns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edm_ray.evaluation.fid import FidEstimate
from edm_ray.search.statistics import Difference, difference, interval_in_words


@dataclass(frozen=True, kw_only=True)
class SecondOpinion:
    """Confirmed samplers by a second reference, on the seeds that confirmed them."""

    reference: str
    """In words."""
    estimates: dict[str, FidEstimate]
    """By label."""

    def against(self, label: str, other: str) -> Difference | None:
        """FID of one minus that of the other, paired; None for itself and for what could not be measured."""
        if label == other or label not in self.estimates or other not in self.estimates:
            return None
        return difference(self.estimates[label], self.estimates[other])

    def sentences(self, found: str, others: Mapping[str, str]) -> list[str]:
        """What it says of the winner beside others (label -> in words): each that it finds better beyond the 95 %
        interval, or that there is none."""
        gaps = {words: gap for label, words in others.items() if (gap := self.against(found, label)) is not None}
        if not gaps:
            return []
        worse = [f"{words} ({interval_in_words(gap)})" for words, gap in gaps.items() if gap.low > 0]
        if worse:
            than = " and than ".join(worse)
            return [
                f"By the second reference, {self.reference}, the sampler found is worse than {than}. "
                "The two references disagree: compare pictures before you use it."
            ]
        better = [words for words, gap in gaps.items() if gap.high < 0]
        told = f"better than {' and than '.join(better)}" if better else "not clearly different from any of them"
        return [
            f"The second reference, {self.reference}, finds no other confirmed sampler better; the one found is {told}."
        ]
