"""Numbers as bars and sparklines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

_LEVELS = "▁▂▃▄▅▆▇█"


def bar(value: Decimal | int, most: Decimal | int, width: int) -> str:
    """Return a bar of up to `width` characters: at least one for a value above 0."""
    if not most or value <= 0:
        return ""
    halves = max(1, round(2 * width * value / most))
    return "█" * (halves // 2) + "▌" * (halves % 2)


def sparkline(values: Sequence[int]) -> str:
    """Return a letter for each value: a blank for 0, the highest for the largest."""
    most = max(values, default=0)
    return "".join(_LEVELS[(each * len(_LEVELS) - 1) // most] if each else " " for each in values).rstrip()
