"""A table of what was worked out, bounded in bytes: what strangers ask for must not fill the memory."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Kept(dict[K, V]):
    """Holds about ``most`` bytes, and is emptied where one more entry would be too much: what is asked for often comes back.

    Entries are put in by ``keep`` alone, which is told how large they are.
    """

    __slots__ = ("_most", "held")

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self.held = 0

    def keep(self, key: K, value: V, size: int) -> None:
        """Keep ``value``, unless it alone would take half of the room."""
        if size > self._most // 2 or key in self:
            return
        if self.held + size > self._most:
            self.clear()
            self.held = 0
        self[key] = value
        self.held += size
