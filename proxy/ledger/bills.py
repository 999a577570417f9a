"""What the biller says of upstream calls, put into their rows and into the sums per hour in one transaction.

Where a daemon and commands share a PostgreSQL, one of them books at a time, and the daemon of a request cannot complete its row
meanwhile: the sums are changed by what the rows were when they were read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import bindparam, select, text, update

from proxy.ledger import rollups
from proxy.ledger.columns import TOKENS, Bill, State
from proxy.ledger.costs import PRICED, AttemptCost, Source, cost_of
from proxy.ledger.schema import attempts, holds, requests
from proxy.protocol.token_classes import TokenClasses

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

_REQUESTS: Final = (
    select(
        *(
            requests.c[name]
            for name in (
                "seq",
                "id",
                "received_us",
                "project",
                "provider",
                "asked",
                "served",
                "tool",
                "outcome",
                "state",
            )
        ),
        *(requests.c[name] for name in TOKENS),
    )
    .where(requests.c.seq.in_(bindparam("seqs", expanding=True)))
    .order_by(requests.c.seq)
    .with_for_update()
)
_LOCK: Final = text("SELECT pg_advisory_xact_lock(5282, 5)")
_ATTEMPTS: Final = (
    select(attempts)
    .where(attempts.c.request.in_(bindparam("seqs", expanding=True)))
    .order_by(attempts.c.request, attempts.c.number)
)
_SET: Final = (
    update(attempts)
    .where(attempts.c.request == bindparam("seq"), attempts.c.number == bindparam("which"))
    .values({name: bindparam(f"new_{name}") for name in ("sent", "lava_id", "response_id", "billed", "bill")})
)
_NOT_ESTIMATED: Final = (
    update(holds).where(holds.c.id.in_(bindparam("ids", expanding=True)), holds.c.expires_us.is_(None)).values(nano=0)
)
"""The bill counts against a budget instead of the estimate that stayed."""


def take_turn(connection: Connection) -> None:
    """Wait until no other process books, and keep others from it until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK)


class Call(NamedTuple):
    """One upstream call as it is stored."""

    number: int
    provider: int | None
    model: int | None
    status: int | None
    sent: bool
    lava_id: str | None
    response_id: str | None
    estimated: int | None
    billed: int | None
    bill: int | None

    @property
    def cost(self) -> AttemptCost:
        return AttemptCost(self.sent, self.bill, self.billed, self.estimated)


class Billed(NamedTuple):
    """A request with its calls. ``tokens`` are in the order of ``columns.TOKENS``."""

    seq: int
    id: bytes
    received_us: int
    key: rollups.Key
    state: int
    tokens: tuple[int | None, ...]
    calls: list[Call]


class NewBill(NamedTuple):
    """What the biller charged for the only call of a request. ``provider`` and ``model`` are numbers of ``names``."""

    provider: int
    model: int
    classes: TokenClasses
    billed: int


Learn = Callable[["Connection", "Sequence[NewBill]"], object]
"""Is passed the new bills of a transaction, before they are written."""


class Bookings:
    """Changes of calls within one transaction. ``close`` writes them, and the difference that they make to the rollups."""

    def __init__(self, connection: Connection, learn: Learn | None = None) -> None:
        take_turn(connection)
        self._connection = connection
        self._learn = learn
        self._billed: set[tuple[int, int]] = set()
        self._loaded: dict[int, Billed] = {}
        self._before: dict[int, dict[str, int]] = {}
        self._changed: dict[tuple[int, int], Call] = {}

    def load(self, seqs: Iterable[int]) -> Mapping[int, Billed]:
        """Return the requests with these numbers, as they are with the changes so far."""
        missing = sorted(set(seqs) - self._loaded.keys())
        if missing:
            for row in self._connection.execute(_REQUESTS, {"seqs": missing}):
                key = rollups.Key(
                    row.received_us // rollups.HOUR_US,
                    row.project,
                    row.provider or 0,
                    row.served or row.asked or 0,
                    row.tool or 0,
                    row.outcome or 0,
                )
                tokens = tuple(row._mapping[name] for name in TOKENS)
                self._loaded[row.seq] = Billed(row.seq, bytes(row.id), row.received_us, key, row.state, tokens, [])
            for row in self._connection.execute(_ATTEMPTS, {"seqs": missing}):
                if row.request in self._loaded:
                    self._loaded[row.request].calls.append(_call(row))
        return self._loaded

    def add_call(self, request: Billed, model: int | None, provider: int | None) -> Call:
        """Add a call to a request whose row has none: its daemon ended before it was stored."""
        number = 1 + max((each.number for each in request.calls), default=0)
        call = Call(number, provider, model, None, True, None, None, None, None, None)
        self._remember(request)
        row = call._asdict() | {"request": request.seq, "started_us": request.received_us, "sent": 1}
        self._connection.execute(attempts.insert(), row)
        request.calls.append(call)
        return call

    def book(
        self, request: Billed, call: Call, bill: Bill, nano: int | None, lava_id: str | None, response_id: str | None
    ) -> bool:
        """Set what the biller says of ``call``. Return whether that is new."""
        changed = call._replace(
            sent=True,
            bill=int(bill),
            billed=nano,
            lava_id=lava_id or call.lava_id,
            response_id=call.response_id or response_id,
        )
        if changed == call:
            return False
        self._remember(request)
        request.calls[request.calls.index(call)] = changed
        self._changed[request.seq, call.number] = changed
        if (changed.bill, changed.billed) == (call.bill, call.billed):
            return False
        self._billed.add((request.seq, call.number))
        return True

    def close(self) -> None:
        """Write the changes."""
        bills = self._new_bills()
        if bills and self._learn is not None:
            self._learn(self._connection, bills)
        if self._changed:
            rows = [
                {
                    "seq": seq,
                    "which": number,
                    "new_sent": int(call.sent),
                    "new_lava_id": call.lava_id,
                    "new_response_id": call.response_id,
                    "new_billed": call.billed,
                    "new_bill": call.bill,
                }
                for (seq, number), call in sorted(self._changed.items())
            ]
            self._connection.execute(_SET, rows)
            billed = {self._loaded[seq].id for (seq, _), call in self._changed.items() if call.billed is not None}
            if billed:
                self._connection.execute(_NOT_ESTIMATED, {"ids": sorted(billed)})
        changes: rollups.Changes = {}
        for seq, before in self._before.items():
            request = self._loaded[seq]
            if request.state != State.OPEN:  # one in flight is not in the rollups
                rollups.merge(changes, request.key, before, {}, -1)
                rollups.merge(changes, request.key, cost_columns(request.calls), {})
        rollups.apply(self._connection, changes)
        self._before.clear()
        self._changed.clear()
        self._billed.clear()

    def _new_bills(self) -> list[NewBill]:
        """Return the bills of settled requests with one call, whose tokens are those of that call."""
        bills = []
        for seq, number in sorted(self._billed):
            request, call = self._loaded[seq], self._changed[seq, number]
            if (
                call.bill == Bill.COMPLETED
                and call.billed is not None
                and call.provider is not None
                and call.model is not None
                and request.state == State.SETTLED
                and len(request.calls) == 1
            ):
                bills.append(NewBill(call.provider, call.model, TokenClasses(*request.tokens), call.billed))
        return bills

    def _remember(self, request: Billed) -> None:
        self._before.setdefault(request.seq, cost_columns(request.calls))


def cost_columns(calls: Sequence[Call]) -> dict[str, int]:
    """Return what a request with these calls adds to the columns of costs of its rollup."""
    cost = cost_of(each.cost for each in calls)
    counted = {} if cost.source is Source.NONE else {f"{cost.source.word}_requests": 1}
    for source in PRICED:
        amount = getattr(cost, source.word)
        if amount is not None:
            counted[source.word] = amount
    return counted


def _call(row: Any) -> Call:
    return Call(
        row.number,
        row.provider,
        row.model,
        row.status,
        bool(row.sent),
        row.lava_id,
        row.response_id,
        row.estimated,
        row.billed,
        row.bill,
    )
