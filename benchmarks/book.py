"""What was measured: every window's figures by row and target, in the order of the rounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class Book:
    """``values[(row, target)]`` has one mapping of figures for each round."""

    values: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)
    #: Answers that were not what they should be, by row and target.
    wrong: Counter[str] = field(default_factory=Counter)
    #: One-time findings that are no window.
    facts: dict[str, Any] = field(default_factory=dict)
    #: Why something is missing.
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, row: str, target: str, figures: dict[str, float]) -> None:
        """Keep a window."""
        self.values.setdefault((row, target), []).append(figures)
        if figures.get("wrong"):
            self.wrong[f"{row}, {target}"] += int(figures["wrong"])

    def has(self, row: str, *targets: str) -> bool:
        """Whether all of these were measured."""
        return all((row, target) in self.values for target in targets)

    def series(self, row: str, target: str, figure: str) -> list[float]:
        """A figure, round by round."""
        return [each[figure] for each in self.values.get((row, target), []) if figure in each]

    def median(self, row: str, target: str, figure: str) -> float | None:
        """The median over the rounds."""
        found = self.series(row, target, figure)
        return median(found) if found else None

    def spread(self, row: str, target: str, figure: str) -> float | None:
        """Largest less smallest, as a share of the median."""
        found = self.series(row, target, figure)
        return (max(found) - min(found)) / median(found) if len(found) > 1 and median(found) else None

    def ratio(self, row: str, target: str, other: str, figure: str, other_row: str | None = None) -> float | None:
        """The median of the rounds' ratios: each round compares what ran close together."""
        pairs = zip(self.series(row, target, figure), self.series(other_row or row, other, figure), strict=False)
        found = [one / two for one, two in pairs if two]
        return median(found) if found else None

    def difference(self, row: str, target: str, other: str, figure: str) -> float | None:
        """The median of the rounds' differences."""
        pairs = zip(self.series(row, target, figure), self.series(row, other, figure), strict=False)
        found = [one - two for one, two in pairs]
        return median(found) if found else None
