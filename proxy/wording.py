"""Words that every message spells alike."""

from __future__ import annotations


def counted(number: float, noun: str) -> str:
    """A number with its noun: ``1 request``, ``2 requests``, ``0.5 seconds``."""
    return f"{number:.15g} {noun}" + ("" if number == 1 else "s")
