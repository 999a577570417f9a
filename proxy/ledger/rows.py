"""A record as values of rows. Nothing here knows a database.

Records that have the same project, models, tool, outcome and so on are one ``Group``: what they share is looked up and bound
once, and their sums are added to the rollups once.
"""

from __future__ import annotations

from time import monotonic, time
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.ledger.columns import Bill, Kind, State
from proxy.protocol.token_classes import NOTHING, TokenClasses, columns_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.ledger.pricing import Estimate
    from proxy.protocol.record import Attempt, Record

ID_BYTES: Final = 12
_USUAL_IDS: Final = ("chatcmpl-", "msg_", "resp_")
"""How ids of responses begin that are not searched for secrets."""


def id_bytes(request_id: str) -> bytes:
    """Return the stored form of a request id: twelve bytes that sort by time. ``request_id_of`` is the reverse."""
    try:
        return bytes.fromhex(request_id[4:])
    except ValueError:
        return request_id.encode("utf-8", "replace")


def request_id_of(stored: bytes) -> str:
    """Return the request id of its stored form."""
    return f"req_{stored.hex()}" if len(stored) == ID_BYTES else stored.decode("utf-8", "replace")


def usage_of(record: Record) -> tuple[TokenClasses, str | None, str | None]:
    """Return the token classes of a record, and the paths and numbers of its usage; unknown where the response has none."""
    raw = record.scanner.raw_usage if record.scanner is not None else None
    if raw is None:
        return NOTHING, None, None
    facts = record.facts
    return columns_of(raw, facts.dialect if facts is not None else "", facts.endpoint if facts is not None else "")


if TYPE_CHECKING:
    # Provider, model, token classes, time in microseconds.
    Estimator = Callable[[str, str | None, TokenClasses, int], Estimate | None]

# What the requests of a group share, in the order of ``SHARED_COLUMNS``; the last is the cost's column of the rollups.
SHARED_NAMES: Final = (
    ("project", Kind.PROJECT),
    ("provider", Kind.PROVIDER),
    ("asked", Kind.MODEL),
    ("served", Kind.MODEL),
    ("dialect", Kind.DIALECT),
    ("endpoint", Kind.ENDPOINT),
    ("outcome", Kind.OUTCOME),
    ("error", Kind.ERROR),
    ("tool", Kind.TOOL),
    ("session", Kind.SESSION),
    ("agent", Kind.AGENT),
    ("tags", Kind.TAGS),
    ("usage_names", Kind.USAGE),
)
SHARED_NUMBERS: Final = (
    "streamed",
    "status",
    "cache_write_5m",
    "cache_write_1h",
    "audio_in",
    "audio_out",
    "images",
    "characters",
    "state",
)
SHARED_COLUMNS: Final = (*(name for name, _ in SHARED_NAMES), *SHARED_NUMBERS, "daemon")
OWN_COLUMNS: Final = (
    "seq",
    "id",
    "received_us",
    "first_byte_us",
    "duration_us",
    "bytes_in",
    "bytes_out",
    "input",
    "cache_read",
    "output",
    "reasoning",
    "usage_numbers",
)
ATTEMPT_NAMES: Final = (
    ("provider", Kind.PROVIDER),
    ("model", Kind.MODEL),
    ("ended", Kind.ERROR),
    ("prices", Kind.PRICES),
)
ATTEMPT_NUMBERS: Final = ("number", "status", "sent", "bill")
ATTEMPT_SHARED: Final = (*(name for name, _ in ATTEMPT_NAMES), *ATTEMPT_NUMBERS)
ATTEMPT_OWN: Final = ("request", "started_us", "duration_us", "lava_id", "response_id", "estimated")

Texts = tuple[str | None, ...]
Numbers = tuple[int | None, ...]
OwnRow = tuple[int | bytearray | str | None, ...]


class Group(NamedTuple):
    """Requests that share ``SHARED_COLUMNS``: their own values, when they were received, and their estimated costs."""

    rows: list[OwnRow]
    received: list[int]
    estimates: list[int]


class Batch:
    """The rows of some records.

    ``biller_asked``: whether the biller decides what a sent request cost. ``estimate`` prices an attempt.
    ``mask`` hides secrets in what an upstream sent.
    """

    def __init__(
        self, *, biller_asked: bool, estimate: Estimator | None = None, mask: Callable[[str], str] = str
    ) -> None:
        self.requests: dict[tuple[Texts, Numbers, str | None], Group] = {}
        self.attempts: dict[tuple[Texts, Numbers], list[OwnRow]] = {}
        self._biller_asked = biller_asked
        self._estimate = estimate
        self._mask = mask
        # Groups by what is cheap to compare. The facts are the same object for all requests with the same head.
        self._found: dict[tuple[object, ...], Group] = {}
        self._attempts_found: dict[tuple[object, ...], list[OwnRow]] = {}
        # The wall clock of a moment in the past is now's, less the time that has passed: it may have been set meanwhile.
        self._clock = time() - monotonic()

    def add(self, record: Record, seq: int, state: State) -> int:
        """Add the rows of ``record``. Return the time at which it was received, in microseconds."""
        opened = state is State.OPEN
        served, tokens, usage_names, usage_numbers, response_id = None, NOTHING, None, None, None
        if record.scanner is not None and not opened:  # the scanner of an open request belongs to the loop
            served = record.scanner.model
            response_id = record.scanner.response_id
            tokens, usage_names, usage_numbers = usage_of(record)
        received = int((record.started + self._clock) * 1e6)
        cost, estimated = None, 0
        for number, attempt in enumerate(record.attempts, 1):
            kind, nano = self._attempt(record, attempt, number, seq, received, tokens, response_id, opened)
            if kind is not None:
                cost = kind if cost is None or kind == "unknown" else cost
                estimated += nano
        input_tokens, cache_read, cache_write_5m, cache_write_1h, output, reasoning, *rare = tokens
        key = (
            id(record.facts),
            record.project,
            record.provider,
            record.model,
            served,
            record.outcome,
            record.status,
            record.error_code,
            record.streamed,
            state,
            cost,
            usage_names,
            cache_write_5m,
            cache_write_1h,
            *rare,
        )
        group = self._found.get(key)
        if group is None:
            group = self._found[key] = self._group(record, served, tokens, usage_names, state, cost)
        rows, times, estimates = group
        first_byte = record.first_byte_s
        rows.append(
            (
                seq,
                bytearray(
                    id_bytes(record.request_id)
                ),  # sqlite3 adapts bytes before it binds them, at ten times the cost
                received,
                None if first_byte is None else int(first_byte * 1e6),
                None if opened else int(record.duration_s * 1e6),
                record.bytes_in,
                record.bytes_out,
                input_tokens,
                cache_read,
                output,
                reasoning,
                usage_numbers,
            )
        )
        times.append(received)
        estimates.append(estimated)
        return received

    def _group(
        self,
        record: Record,
        served: str | None,
        tokens: TokenClasses,
        usage_names: str | None,
        state: State,
        cost: str | None,
    ) -> Group:
        facts = record.facts
        texts: Texts = (
            record.project,
            record.provider,
            record.model,
            served,
            facts.dialect if facts is not None else None,
            facts.endpoint if facts is not None else None,
            record.outcome,
            record.error_code,
            *((facts.tool, facts.session, facts.agent, facts.tags) if facts is not None else (None,) * 4),
            usage_names,
        )
        numbers = (record.streamed, record.status, *tokens[2:4], *tokens[6:], state)
        return self.requests.setdefault((texts, numbers, cost), Group([], [], []))

    def _attempt(
        self,
        record: Record,
        attempt: Attempt,
        number: int,
        seq: int,
        received: int,
        tokens: TokenClasses,
        response_id: str | None,
        opened: bool,
    ) -> tuple[str | None, int]:
        """Add an attempt. Return how it counts in the rollups (``cost_kind``) and its estimated cost."""
        last = number == len(record.attempts)
        started, ended = attempt.started - record.started, attempt.ended
        if ended is not None:
            duration: int | None = int((ended - attempt.started) * 1e6)
        else:
            duration = None if opened else int((record.duration_s - started) * 1e6)
        nano = source = None
        if self._estimate is not None and last and attempt.sent and not opened:
            estimate = self._estimate(attempt.provider, attempt.model, tokens, received)
            if estimate is not None:
                nano, source = estimate
        key = (attempt.provider, attempt.model, attempt.reason, source, number, attempt.status, attempt.sent)
        rows = self._attempts_found.get(key)
        if rows is None:
            # Said in the row, so that the row alone says what its cost is (``costs.source_of``).
            bill = Bill.PENDING if self._biller_asked and attempt.sent else None
            shared = (key[:4], (*key[4:], bill))
            rows = self._attempts_found[key] = self.attempts.setdefault(shared, [])
        lava_id = attempt.lava_request_id or (record.lava_request_id if last else None)
        if lava_id is not None and not lava_id.startswith("req_"):
            lava_id = self._mask(lava_id)
        if response_id is not None and not response_id.startswith(_USUAL_IDS):
            response_id = self._mask(response_id)
        rows.append((seq, received + int(started * 1e6), duration, lava_id, response_id if last else None, nano))
        if not attempt.sent:
            return None, 0
        if self._biller_asked:
            return "pending", nano or 0
        return ("unknown", 0) if nano is None else ("estimated", nano)


def cost_kind(sent: bool, bill: int | None, estimated: int | None, biller_asked: bool) -> str | None:
    """Return what an attempt's cost is: ``billed``, ``pending``, ``unmetered``, ``estimated`` or ``unknown``.

    ``None`` for one of which nothing was sent: it cost nothing.
    """
    if bill == Bill.COMPLETED:
        return "billed"
    if bill == Bill.UNMETERED:
        return "unmetered"
    if not sent:
        return None
    if bill == Bill.PENDING or (bill is None and biller_asked):
        return "pending"
    return "unknown" if estimated is None else "estimated"
