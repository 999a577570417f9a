"""What the columns of the ledger hold: kinds, states, token classes, sums. Nothing here needs SQLAlchemy.

Units: times in microseconds UTC since the epoch, durations in microseconds, money in billionths of a dollar. Text that
repeats is stored once in ``names`` and referred to by number. ``NULL`` means unknown, never 0.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

VERSION: Final = 2
"""Of the schema: the number of ``schema.MIGRATIONS``."""


class Kind(IntEnum):
    """What a row of ``names`` is."""

    PROJECT = 1
    PROVIDER = 2
    MODEL = 3
    DIALECT = 4
    ENDPOINT = 5
    OUTCOME = 6
    ERROR = 7
    TOOL = 8
    SESSION = 9
    AGENT = 10
    TAGS = 11
    USAGE = 12  # the paths of a provider's usage object, joined by commas
    PRICES = 13  # the version and date of a price table
    DAEMON = 14


class State(IntEnum):
    """The state of a request's row."""

    OPEN = 0
    SETTLED = 1
    INTERRUPTED = 2  # the daemon ended before the request did
    HEALED = 3  # rebuilt from the biller's records after a loss; without timings


class Bill(IntEnum):
    """What the biller says of an attempt. ``NULL``: nothing was sent, or the biller is not asked."""

    PENDING = 1  # also while it has not been asked yet
    COMPLETED = 2
    UNMETERED = 3  # the biller's status "error": it ran and was not metered
    MISSING = 4  # the biller has no record of it


class OutboxState(IntEnum):
    """The state of a row of ``outbox``. What was acknowledged is deleted."""

    INTENT = 0  # the upstream call is under way, or its daemon ended during it
    READY = 1  # to be delivered, at ``next_us``
    DEAD = 2  # not delivered by itself any more; ``problem`` says why


INTENT_BODY: Final = '{"daemon":'
"""So begins the body of a row of ``outbox`` that has no usage yet."""


TOKENS: Final = (
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "output",
    "reasoning",
    "audio_in",
    "audio_out",
    "images",
    "characters",
)
"""The columns of the token classes (``protocol/token_classes.py``): disjoint, but for ``reasoning``, a part of ``output``."""

ROLLUP_KEY: Final = ("hour", "project", "provider", "model", "tool", "outcome")
ROLLUP_SUMS: Final = (
    "requests",
    *TOKENS,
    "billed",
    "pending",
    "estimated",
    "billed_requests",
    "pending_requests",
    "unmetered_requests",
    "estimated_requests",
    "unknown_requests",
    "streamed_requests",
    "bytes_in",
    "bytes_out",
)


class NewerSchemaError(Exception):
    """The database was written by a later version of this program."""

    def __init__(self, found: int) -> None:
        super().__init__(
            f"The ledger has schema {found}, and this lava-proxy knows schemas up to {VERSION}. "
            "Use the later version of lava-proxy that wrote it, or another ledger (path or url under [ledger])."
        )
