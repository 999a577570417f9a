"""Joins the biller's records with the calls of the ledger: by Lava's id, our id in the metadata, the response's id.

Never by time or tokens. A record that belongs to a call that another record has paid already is a *duplicate*; one that
belongs to none is a *phantom*. Both are kept in ``reconciliation`` under ``extra <id>``, until a call for them turns up.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import bindparam, delete, select

from proxy.ledger.biller import BillerRecord
from proxy.ledger.bills import Bookings
from proxy.ledger.columns import Bill, Kind, State
from proxy.ledger.names import find_numbers
from proxy.ledger.rows import id_bytes, request_id_of
from proxy.ledger.schema import attempts, reconciliation, requests

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from proxy.ledger.bills import Billed, Call, Learn

EXTRA: Final = "extra "
_DAY_US: Final = 86_400_000_000

_BY_LAVA_ID: Final = select(attempts.c.lava_id, attempts.c.request, attempts.c.number).where(
    attempts.c.lava_id.in_(bindparam("ids", expanding=True))
)
_BY_OUR_ID: Final = select(requests.c.id, requests.c.seq).where(requests.c.id.in_(bindparam("ids", expanding=True)))
# The time only keeps the search short: no index has the response's id.
_BY_RESPONSE: Final = (
    select(attempts.c.response_id, attempts.c.request, attempts.c.number)
    .select_from(attempts.join(requests, requests.c.seq == attempts.c.request))
    .where(
        attempts.c.response_id.in_(bindparam("ids", expanding=True)),
        requests.c.received_us.between(bindparam("first"), bindparam("last")),
    )
)
_EXTRAS: Final = select(reconciliation.c.name, reconciliation.c.value).where(
    reconciliation.c.scope == bindparam("scope"), reconciliation.c.name.in_(bindparam("names", expanding=True))
)


class Verdict(StrEnum):
    """What a record of the biller is to the ledger."""

    MATCHED = "matched"
    DUPLICATE = "duplicate"
    PHANTOM = "phantom"


class Taken(NamedTuple):
    """A record and what became of it. ``request_id`` is the request that it belongs to, or claims to.

    ``corrected``: the ledger had another amount from an earlier record. ``tokens``: input and output as the ledger has them.
    ``project`` is the number of the request's project.
    """

    record: BillerRecord
    verdict: Verdict
    known: bool
    request_id: str | None = None
    received_us: int | None = None
    corrected: bool = False
    tokens: tuple[int | None, int | None] = (None, None)
    project: int | None = None


class Extra(NamedTuple):
    """A record at Lava only, as it is kept. ``request_id`` is the request that it claims to belong to."""

    record: BillerRecord
    verdict: Verdict
    request_id: str | None


def take(
    connection: Connection, scope: str, records: Sequence[BillerRecord], learn: Learn | None = None
) -> list[Taken]:
    """Join up to some hundred records with the ledger, in the caller's transaction. ``learn`` is passed the new bills."""
    records = list({each.id: each for each in records}.values())
    bookings = Bookings(connection, learn)
    found = _Candidates(connection, bookings, records)
    extras = _extras(connection, scope, records)
    taken = []
    for record in records:
        result = _take(bookings, found, record, connection)
        before = extras.get(record.id)
        if result.verdict is Verdict.MATCHED:
            if before is not None:
                forget(connection, scope, record.id)
        else:
            now = _extra_of(result)
            result = result._replace(known=before == now and record.bill is not Bill.PENDING)
            if before != now:
                _keep(connection, scope, now)
        taken.append(result)
    bookings.close()
    return taken


class _Candidates:
    """The calls that some records may belong to."""

    def __init__(self, connection: Connection, bookings: Bookings, records: Sequence[BillerRecord]) -> None:
        self.by_lava_id: dict[str, tuple[int, int]] = {
            lava_id: (seq, number)
            for lava_id, seq, number in connection.execute(_BY_LAVA_ID, {"ids": [each.id for each in records]})
        }
        rest = [each for each in records if each.id not in self.by_lava_id]
        ours = [id_bytes(each.proxy_id) for each in rest if each.proxy_id is not None]
        self.by_our_id: dict[str, int] = {}
        if ours:
            rows = connection.execute(_BY_OUR_ID, {"ids": ours})
            self.by_our_id = {request_id_of(bytes(stored)): seq for stored, seq in rows}
        rest = [each for each in rest if each.proxy_id not in self.by_our_id and each.response_id is not None]
        self.by_response: dict[str, tuple[int, int]] = {}
        if rest:
            times = [each.created_us for each in rest]
            window = {"first": min(times) - _DAY_US, "last": max(times) + _DAY_US}
            responses = connection.execute(_BY_RESPONSE, {"ids": [each.response_id for each in rest], **window})
            self.by_response = {response_id: (seq, number) for response_id, seq, number in responses}
        places = (*self.by_lava_id.values(), *self.by_response.values())
        self.requests = bookings.load([*(seq for seq, _ in places), *self.by_our_id.values()])

    def call(self, place: tuple[int, int] | None) -> tuple[Billed, Call] | None:
        """Return the call with these numbers of its request and itself."""
        request = self.requests.get(place[0]) if place is not None else None
        if request is None or place is None:
            return None
        return next(((request, each) for each in request.calls if each.number == place[1]), None)


def _take(bookings: Bookings, found: _Candidates, record: BillerRecord, connection: Connection) -> Taken:
    exact = found.call(found.by_lava_id.get(record.id))
    if exact is not None:
        return _book(bookings, *exact, record)
    seq = found.by_our_id.get(record.proxy_id or "")
    request = found.requests.get(seq) if seq is not None else None
    if request is not None:
        call = _free_call(request)
        if call is None and not request.calls:
            model, provider = find_numbers(connection, (Kind.MODEL, record.model), (Kind.PROVIDER, record.provider))
            call = bookings.add_call(request, model, provider)
        if call is not None:
            return _book(bookings, request, call, record)
        return Taken(record, Verdict.DUPLICATE, False, request_id_of(request.id), request.received_us)
    place = found.call(found.by_response.get(record.response_id or ""))
    if place is not None:
        request, call = place
        if _is_free(call):
            return _book(bookings, request, call, record)
        return Taken(record, Verdict.DUPLICATE, False, request_id_of(request.id), request.received_us)
    return Taken(record, Verdict.PHANTOM, False, record.proxy_id)


def _is_free(call: Call) -> bool:
    return call.lava_id is None and call.bill not in (Bill.COMPLETED, Bill.UNMETERED)


def _free_call(request: Billed) -> Call | None:
    """Return the call that a record with our id belongs to: one that is sent, else any, and that has no record."""
    free = [each for each in request.calls if _is_free(each)]
    return next((each for each in free if each.sent), free[0] if free else None)


def _book(bookings: Bookings, request: Billed, call: Call, record: BillerRecord) -> Taken:
    final = (Bill.COMPLETED, Bill.UNMETERED)
    was_final = call.bill in final
    if record.bill is Bill.PENDING and was_final:
        changed = False
    else:
        changed = bookings.book(request, call, record.bill, record.nano, record.id, record.response_id)
    return Taken(
        record,
        Verdict.MATCHED,
        was_final and not changed,
        request_id_of(request.id),
        request.received_us,
        was_final and changed,
        _counted(request) if len(request.calls) == 1 and request.state != State.OPEN else (None, None),
        request.key.project,
    )


def _counted(request: Billed) -> tuple[int | None, int | None]:
    """Return all input and all output that the ledger counted."""
    inputs = [each for each in (*request.tokens[:4], request.tokens[6]) if each is not None]
    outputs = [each for each in (request.tokens[4], request.tokens[7]) if each is not None]
    return sum(inputs) if inputs else None, sum(outputs) if outputs else None


# What is at Lava only


def _extra_of(taken: Taken) -> Extra:
    return Extra(taken.record, taken.verdict, taken.request_id)


def _keep(connection: Connection, scope: str, extra: Extra) -> None:
    forget(connection, scope, extra.record.id)
    document = {"verdict": extra.verdict, "request_id": extra.request_id, **extra.record._asdict()}
    name = EXTRA + extra.record.id
    value = json.dumps(document, separators=(",", ":"))
    connection.execute(reconciliation.insert(), {"scope": scope, "name": name, "value": value})


def forget(connection: Connection, scope: str, *record_ids: str) -> None:
    """Delete records that were kept."""
    kept = [EXTRA + each for each in record_ids]
    connection.execute(delete(reconciliation).where(reconciliation.c.scope == scope, reconciliation.c.name.in_(kept)))


def _read(value: str) -> Extra:
    found: dict[str, Any] = json.loads(value)
    verdict, request_id = Verdict(found.pop("verdict")), found.pop("request_id")
    return Extra(BillerRecord(**{**found, "bill": Bill(found["bill"])}), verdict, request_id)


def _extras(connection: Connection, scope: str, records: Iterable[BillerRecord]) -> Mapping[str, Extra]:
    rows = connection.execute(_EXTRAS, {"scope": scope, "names": [EXTRA + each.id for each in records]})
    return {name.removeprefix(EXTRA): _read(value) for name, value in rows}


def extras(
    connection: Connection, scope: str, after: str = "", limit: int = 1000, *, ours: bool = False
) -> Iterator[Extra]:
    """Return the records that are at Lava only, by id, those behind ``after``. ``ours``: only those that have an id of ours."""
    rows = connection.execute(
        select(reconciliation.c.value)
        .where(
            reconciliation.c.scope == scope,
            reconciliation.c.name > EXTRA + after,
            reconciliation.c.name.like(EXTRA + "%"),
            reconciliation.c.value.like('%"proxy_id":"req_%' if ours else "%"),
        )
        .order_by(reconciliation.c.name)
        .limit(limit)
    )
    return (_read(value) for value in rows.scalars())
