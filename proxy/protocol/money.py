"""Amounts of money are whole billionths of a dollar."""

from typing import Final

NANO_PER_DOLLAR: Final = 1_000_000_000
