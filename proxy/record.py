"""What is known of one request when it is over: filled along the way, recorded exactly once, without waiting."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.usage import Scanner


class Outcome(StrEnum):
    """One word for how a request ended: the same in logs, metrics and the ledger."""

    OK = "ok"
    PROVIDER_ERROR = "provider_error"
    LAVA_ERROR = "lava_error"
    REFUSED = "refused"  # by us
    UPSTREAM_ERROR = "upstream_error"  # no whole answer head
    TRUNCATED = "truncated"  # the answer broke off
    INCOMPLETE = "incomplete"  # the framing ended well, the stream's own end marker never came
    STALLED = "stalled"  # the answer stopped moving
    TIMEOUT = "timeout"
    CLIENT_GONE = "client_gone"
    CLIENT_ERROR = "client_error"  # the client broke its own request
    SHUTDOWN = "shutdown"


@dataclass(slots=True)
class Record:
    """One request. Times in seconds, on the monotonic clock where they are points in time; sizes in bytes.

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
    outcome: Outcome = Outcome.OK
    first_byte_s: float | None = None
    duration_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    lava_request_id: str | None = None
    error_code: str | None = None
    upstream_error: str | None = None
    hint: str | None = None
    scanner: Scanner | None = None
    """Knows the usage; asked for it off the request's path."""
