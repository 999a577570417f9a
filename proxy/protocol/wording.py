"""Wording shared by all messages."""

from __future__ import annotations


def counted(number: float, noun: str) -> str:
    """Return a number with its noun: ``1 request``, ``2 requests``, ``0.5 seconds``."""
    return f"{number:.15g} {noun}" + ("" if number == 1 else "s")
