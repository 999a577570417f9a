"""The rows of the outbox: an intent before the upstream call, its usage after it, and what became of the delivery.

All functions work in the caller's transaction.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import delete, func, select, update

from proxy.ledger.columns import INTENT_BODY, Kind, OutboxState
from proxy.ledger.leases import Duty, leads, living
from proxy.ledger.names import find_numbers
from proxy.ledger.rows import id_bytes, request_id_of, usage_of
from proxy.ledger.schema import attempts, names, outbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from proxy.ledger.store import Stored
    from proxy.protocol.record import Record
    from proxy.protocol.token_classes import TokenClasses

PAGE: Final = 50
ASK_AFTER_US: Final = 5_000_000
"""Before a try is repeated, Lava is asked whether it worked: not sooner, because its records may be late."""
MAX_PROBLEM: Final = 300
MAX_WAIT_US: Final = 600_000_000
"""No letter waits as long as this. One that seems to is due: the clock was set back."""

_INTENT, _READY, _DEAD = map(int, (OutboxState.INTENT, OutboxState.READY, OutboxState.DEAD))


class Letter(NamedTuple):
    """A usage record to be delivered. ``tries`` before this one."""

    seq: int
    id: str
    body: dict[str, Any]
    tries: int


class Result(NamedTuple):
    """What became of a letter: delivered (``state`` is ``None``), or its new state.

    ``tries`` is what it has had, if the one for which it was taken does not count.
    """

    seq: int
    state: OutboxState | None
    problem: str | None = None
    next_us: int = 0
    tries: int | None = None


class Waiting(NamedTuple):
    """How many rows there are: calls under way, to be delivered, dead letters."""

    intents: int
    ready: int
    dead: int


def add_intent(connection: Connection, record: Record, daemon: str, payer: dict[str, str | None], now_us: int) -> None:
    """Add the intent of a request. ``payer`` has the names of the customer and the meter."""
    (project,) = find_numbers(connection, (Kind.PROJECT, record.project))
    body = json.dumps({"daemon": daemon, **payer}, separators=(",", ":"))
    row = {"id": id_bytes(record.request_id), "project": project, "created_us": now_us, "state": _INTENT, "body": body}
    connection.execute(outbox.insert(), row)


def complete(connection: Connection, stored: Sequence[Stored]) -> int:
    """Turn the intents of settled requests into usage records. Return how many are to be delivered."""
    ready = 0
    for each in stored:
        if each.record.intent:
            ready += _complete(connection, each.record, each.seq)
    return ready


def _complete(connection: Connection, record: Record, seq: int) -> bool:
    # A dead letter with its intent: this daemon was taken for dead.
    where = (outbox.c.id == id_bytes(record.request_id), outbox.c.body.startswith(INTENT_BODY))
    found = connection.execute(select(outbox.c.body).where(*where)).scalar_one_or_none()
    if found is None:
        return False
    sent = [each for each in record.attempts if each.sent]
    status = sent[-1].status if sent else None
    if not sent or (status is not None and status >= 400):
        connection.execute(delete(outbox).where(*where))  # it used nothing
        return False
    tokens = usage_of(record)[0]
    used = usage_fields(tokens)
    if status is None or not used:
        problem = (
            "no answer came: what it used is not known" if status is None else "the answer does not say what it used"
        )
        connection.execute(update(outbox).where(*where).values(state=_DEAD, problem=problem))
        return False
    body = {name: value for name, value in json.loads(found).items() if name != "daemon"} | used
    document = json.dumps(body, separators=(",", ":"))
    connection.execute(update(outbox).where(*where).values(state=_READY, body=document, problem=None))
    # Lava's record will have our id: the reconciler joins it with this call.
    call = (attempts.c.request == seq, attempts.c.number == len(record.attempts))
    connection.execute(update(attempts).where(*call).values(lava_id=record.request_id))
    return True


def usage_fields(tokens: TokenClasses) -> dict[str, int]:
    """Return the fields of ``POST requests`` for these counts: all input, all output; what is unknown is left out."""
    inputs = (tokens.input, tokens.cache_read, tokens.cache_write_5m, tokens.cache_write_1h, tokens.audio_in)
    sums = {
        "input_tokens": [each for each in inputs if each is not None],
        "output_tokens": [each for each in (tokens.output, tokens.audio_out) if each is not None],
        "input_characters": [tokens.characters] if tokens.characters is not None else [],
    }
    return {name: sum(numbers) for name, numbers in sums.items() if numbers}


def recover(connection: Connection, daemon: str) -> int:
    """Make dead letters of the intents of daemons that ended: what their calls used is not known. Return how many.

    Of several daemons on one PostgreSQL that one does so which delivers.
    """
    if not leads(connection, Duty.DELIVER):
        return 0
    alive = {daemon}
    if connection.dialect.name == "postgresql":
        alive.update(living(connection))
    rows = connection.execute(select(outbox.c.seq, outbox.c.body).where(outbox.c.state == _INTENT)).all()
    dead = [seq for seq, body in rows if json.loads(body).get("daemon") not in alive]
    problem = "the daemon ended during the request: what it used is not known"
    for start in range(0, len(dead), 500):
        part = dead[start : start + 500]
        connection.execute(update(outbox).where(outbox.c.seq.in_(part)).values(state=_DEAD, problem=problem))
    return len(dead)


def projects(connection: Connection) -> list[tuple[int, str]]:
    """Return the projects with records to be delivered. One look-up each: there may be a million rows.

    Of several daemons on one PostgreSQL one delivers: the lock is its connection's, until that ends.
    """
    found: list[tuple[int, str]] = []
    last = -1
    if not leads(connection, Duty.DELIVER):
        return found
    while True:
        query = select(func.min(outbox.c.project)).where(outbox.c.state == _READY, outbox.c.project > last)
        number = connection.execute(query).scalar_one()
        if number is None:
            return found
        name = connection.execute(select(names.c.text).where(names.c.id == number)).scalar_one_or_none()
        found.append((number, name or ""))
        last = number


def take(connection: Connection, project: int, now_us: int) -> list[Letter]:
    """Return the next records of a project in their order, marked as tried: a daemon that starts again then asks first.

    One that Lava refused lets the others pass while it waits.
    """
    rows = connection.execute(
        select(outbox.c.seq, outbox.c.id, outbox.c.body, outbox.c.attempts, outbox.c.next_us)
        .where(outbox.c.state == _READY, outbox.c.project == project)
        .where((outbox.c.next_us <= now_us) | (outbox.c.next_us > now_us + MAX_WAIT_US) | outbox.c.problem.is_(None))
        .order_by(outbox.c.seq)
        .limit(PAGE)
        .with_for_update(skip_locked=True)
    ).all()
    letters = []
    for seq, stored, body, tries, next_us in rows:
        if now_us < next_us <= now_us + MAX_WAIT_US:
            break
        letters.append(Letter(seq, request_id_of(bytes(stored)), json.loads(body), tries))
    if letters:
        marked = [each.seq for each in letters]
        connection.execute(
            update(outbox)
            .where(outbox.c.seq.in_(marked))
            .values(attempts=outbox.c.attempts + 1, next_us=now_us + ASK_AFTER_US)
        )
    return letters


def settle(connection: Connection, results: Sequence[Result]) -> None:
    """Write what became of letters."""
    done = [each.seq for each in results if each.state is None]
    if done:
        connection.execute(delete(outbox).where(outbox.c.seq.in_(done)))
    for each in results:
        if each.state is not None:
            problem = each.problem[:MAX_PROBLEM] if each.problem is not None else None
            values: dict[str, Any] = {"state": int(each.state), "problem": problem, "next_us": each.next_us}
            if each.tries is not None:
                values["attempts"] = each.tries
            connection.execute(update(outbox).where(outbox.c.seq == each.seq).values(values))


def next_us(connection: Connection, project: int) -> int | None:
    """Return when something of a project is due: the first in its order, or one of those that were refused."""
    ready = (outbox.c.state == _READY, outbox.c.project == project)
    first = select(outbox.c.next_us).where(*ready, outbox.c.problem.is_(None)).order_by(outbox.c.seq).limit(1)
    refused = select(outbox.c.next_us).where(*ready, outbox.c.problem.is_not(None)).order_by(outbox.c.seq).limit(1000)
    due = [
        connection.execute(first).scalar_one_or_none(),
        connection.execute(select(func.min(refused.subquery().c.next_us))).scalar_one(),
    ]
    return min((each for each in due if each is not None), default=None)


def waiting(connection: Connection) -> Waiting:
    """Count the rows."""
    rows = connection.execute(select(outbox.c.state, func.count()).group_by(outbox.c.state))
    counts: dict[int, int] = {state: int(count) for state, count in rows}
    return Waiting(counts.get(_INTENT, 0), counts.get(_READY, 0), counts.get(_DEAD, 0))
