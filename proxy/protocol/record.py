"""The record of one request: filled step by step, and passed to the observers once, without waiting."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.protocol.usage import Scanner


class Outcome(StrEnum):
    """How a request ended, in one word: the same in logs, metrics and the ledger."""

    OK = "ok"
    PROVIDER_ERROR = "provider_error"
    LAVA_ERROR = "lava_error"
    REFUSED = "refused"  # by us
    UPSTREAM_ERROR = "upstream_error"  # no complete response head
    TRUNCATED = "truncated"  # the response ended too early
    INCOMPLETE = "incomplete"  # the framing is complete, but the stream's end marker is missing
    STALLED = "stalled"  # the response made no progress
    TIMEOUT = "timeout"
    CLIENT_GONE = "client_gone"
    CLIENT_ERROR = "client_error"  # the client violated HTTP in its request
    SHUTDOWN = "shutdown"


@dataclass(slots=True)
class Record:
    """One request. Times in seconds (points in time by the monotonic clock), sizes in bytes.

    ``path`` has no query: queries hold keys.
    """

    request_id: str
    method: str
    path: str
    started: float
    project: str | None = None
    provider: str | None = None
    model: str | None = None
    status: int | None = None
    outcome: Outcome | None = None
    """``None`` until the request is settled."""
    first_byte_s: float | None = None
    duration_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    lava_request_id: str | None = None
    error_code: str | None = None
    upstream_error: str | None = None
    hint: str | None = None
    scanner: Scanner | None = None
    """Has the usage, which is read only after the request."""
