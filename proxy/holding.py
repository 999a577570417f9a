"""Request bodies that are held until it is known where they go: within one budget, and no longer than they must be."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Budget:
    """How many bytes are held, all requests together."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


class Held:
    """One body, in the pieces in which it came. It counts until it is taken, piece by piece, or closed."""

    __slots__ = ("_budget", "_counted", "_pieces", "size")

    def __init__(self, budget: Budget) -> None:
        self.size = 0
        """Of the body, whatever of it has been taken."""
        self._budget = budget
        self._counted = 0
        self._pieces: deque[bytes] = deque()

    def add(self, piece: bytes) -> None:
        """The next piece of the body."""
        self._pieces.append(piece)
        self.size += len(piece)
        self._count(len(piece))

    def __iter__(self) -> Iterator[bytes]:
        """The pieces, to be looked at."""
        return iter(self._pieces)

    def taken(self) -> Iterator[bytes]:
        """The pieces, to be sent: each is given up here, and counts until the next one is asked for."""
        while self._pieces:
            size = len(self._pieces[0])
            yield self._pieces.popleft()
            if self._counted:
                self._count(-size)

    def close(self) -> None:
        """Give up what is left. May be called twice."""
        self._pieces.clear()
        self._count(-self._counted)

    def _count(self, size: int) -> None:
        self._counted += size
        self._budget.held += size
