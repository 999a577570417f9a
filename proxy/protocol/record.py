"""The record of one request: filled step by step, and passed to the observers once, without waiting."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

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


class RequestFacts(NamedTuple):
    """What the head of a request says, the same for every request with this head.

    ``tool`` is the program that sent it; ``session`` and ``agent`` are as sent, and are hashed before they are stored.
    ``dialect`` is the client's; ``endpoint`` is one of ``dialects.ENDPOINT_NAMES``.
    """

    tool: str | None
    session: str | None
    agent: str | None
    tags: str | None
    dialect: str
    endpoint: str


@dataclass(slots=True)
class Attempt:
    """One upstream call. Points in time in seconds by the monotonic clock."""

    provider: str
    model: str | None
    started: float
    ended: float | None = None
    status: int | None = None
    sent: bool = True
    """Whether any byte of the request may have reached the upstream: then it may cost money."""
    reason: str | None = None
    """Why there was no response head; ``None`` if there was one."""
    lava_request_id: str | None = None


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
    """The model that was asked for."""
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
    streamed: bool = False
    facts: RequestFacts | None = None
    """Set when a request that may be forwarded has passed the access checks. Only such requests are in the ledger."""
    attempts: list[Attempt] = field(default_factory=list)
    stored: int = 0
    """For the ledger: 0 until this request was handed to it while in flight, then 1 and the number of attempts it had."""
    intent: bool = False
    """Whether its usage is to be reported to Lava, and an intent may stand in the outbox."""
    estimate_kept: tuple[int, int] | None = None
    """Tokens and billionths of a dollar that a budget goes on counting, because its usage is not known; ``None`` without one."""
    scanner: Scanner | None = None
    """Has the usage, which is read only after the request."""
