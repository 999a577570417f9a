"""A cache with a limit in bytes: requests from anywhere must not fill the memory."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(dict[K, V]):
    """Holds about ``limit`` bytes, and is cleared if one more entry would exceed it: frequent entries soon return.

    Entries are added only by ``keep``, with their size.
    """

    __slots__ = ("_limit", "held")

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self.held = 0

    def keep(self, key: K, value: V, size: int) -> None:
        """Store ``value``, unless it alone exceeds half of the limit."""
        if size > self._limit // 2 or key in self:
            return
        if self.held + size > self._limit:
            self.clear()
            self.held = 0
        self[key] = value
        self.held += size
