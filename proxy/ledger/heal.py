"""Rebuilds rows from the biller's records after a loss. They are marked as healed: what ran and what it cost, without timings.

Only records with our id belong here: other programs may use the same account. Doing it twice changes nothing, because a record
whose request is there is joined with it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import select

from proxy.ledger import matching, rollups
from proxy.ledger.bills import Call, cost_columns, take_turn
from proxy.ledger.books import Subtotal
from proxy.ledger.columns import Bill, Kind, State
from proxy.ledger.matching import Verdict
from proxy.ledger.names import find_numbers
from proxy.ledger.rows import ID_BYTES, id_bytes
from proxy.ledger.schema import attempts, requests
from proxy.ledger.store import new_seqs
from proxy.protocol.record import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from proxy.ledger.biller import BillerRecord
    from proxy.ledger.reconcile import Runner

UNKNOWN_PROJECT: Final = "unknown"
HEALED: Final = "healed"
"""The outcome of a healed request that the biller did not meter."""
_PER_STEP: Final = 100


class Healed(NamedTuple):
    """What was rebuilt, and how many records were left because they have no id of ours."""

    amount: Subtotal
    left: int


class Healing:
    """Rebuilds the rows of one account. ``projects`` are its own, with the customer that each one bills, if any.

    ``everything``: also those of records without our id.
    """

    def __init__(
        self, runner: Runner, scope: str, projects: Mapping[str, str | None], *, everything: bool = False
    ) -> None:
        self._runner = runner
        self._scope = scope
        self._projects = projects
        self._everything = everything
        self._numbers: dict[tuple[str | None, ...], list[int | None]] = {}

    async def heal(self) -> Healed:
        """Rebuild the requests of the records that are kept as phantoms. Raises ``LedgerUnavailableError``."""
        amount, left = Subtotal(), 0
        after: str | None = ""
        while after is not None:
            start = after
            after, step, skipped = await self._runner.run(lambda connection: self._step(connection, start))  # noqa: B023
            amount, left = amount + step, left + skipped
        return Healed(amount, left)

    def _step(self, connection: Connection, after: str) -> tuple[str | None, Subtotal, int]:
        take_turn(connection)
        kept = list(matching.extras(connection, self._scope, after, _PER_STEP))
        phantoms = [each for each in kept if each.verdict is Verdict.PHANTOM and each.record.bill is not Bill.PENDING]
        chosen = [each for each in phantoms if each.record.proxy_id is not None or self._everything]
        first = {_id_of(each.record): each for each in reversed(chosen)}
        there = {
            bytes(stored)
            for stored in connection.execute(select(requests.c.id).where(requests.c.id.in_(list(first)))).scalars()
        }
        new = {stored: extra.record for stored, extra in first.items() if stored not in there}
        if new:
            self._rebuild(connection, new)
            matching.forget(connection, self._scope, *(each.id for each in new.values()))
        amount = Subtotal(len(new), sum(each.nano or 0 for each in new.values()))
        # A second record of one request is a duplicate of the first, now that there is one.
        rest = [
            each.record for each in chosen if each is not first[_id_of(each.record)] or _id_of(each.record) in there
        ]
        if rest:
            matching.take(connection, self._scope, rest)
        return (kept[-1].record.id if kept else None), amount, len(phantoms) - len(chosen)

    def _rebuild(self, connection: Connection, records: Mapping[bytes, BillerRecord]) -> None:
        """Insert requests with one call each, and count them. Their stored ids are the keys."""
        made, calls = [], []
        changes: rollups.Changes = {}
        for seq, (stored, record) in zip(new_seqs(connection, len(records)), records.items(), strict=True):
            outcome_name = Outcome.OK if record.bill is Bill.COMPLETED else HEALED
            names = (self._project_of(record), record.provider, record.model, outcome_name)
            project, provider, model, outcome = self._numbers_of(connection, names)
            received = _received_us(record)
            used = {"input": record.input_tokens, "output": record.output_tokens}
            asked = {"provider": provider, "asked": model, "outcome": outcome, "state": int(State.HEALED)}
            made.append({"seq": seq, "id": stored, "received_us": received, "project": project, **asked, **used})
            call = Call(1, provider, model, None, True, record.id, None, None, record.nano, int(record.bill))
            calls.append(call._asdict() | {"request": seq, "started_us": received, "sent": 1})
            key = rollups.Key(received // rollups.HOUR_US, project or 0, provider or 0, model or 0, 0, outcome or 0)
            counted = {name: number or 0 for name, number in used.items()}
            rollups.merge(changes, key, {"requests": 1, **counted, **cost_columns([call])}, {})
        connection.execute(requests.insert(), made)
        connection.execute(attempts.insert(), calls)
        rollups.apply(connection, changes)

    def _numbers_of(self, connection: Connection, names: tuple[str | None, ...]) -> list[int | None]:
        found = self._numbers.get(names)
        if found is None:
            kinds = (Kind.PROJECT, Kind.PROVIDER, Kind.MODEL, Kind.OUTCOME)
            found = self._numbers[names] = find_numbers(connection, *zip(kinds, names, strict=True))
        return found

    def _project_of(self, record: BillerRecord) -> str:
        """The project that a record names by its customer, or the only one; Lava's records have no other sign of it."""
        billed = [
            name for name, customer in self._projects.items() if customer is not None and customer == record.customer
        ]
        if len(billed) == 1:
            return billed[0]
        return next(iter(self._projects)) if len(self._projects) == 1 else UNKNOWN_PROJECT


def _id_of(record: BillerRecord) -> bytes:
    if record.proxy_id is not None:
        return id_bytes(record.proxy_id)
    return blake2b(record.id.encode(), digest_size=ID_BYTES, person=b"lava-proxy").digest()


def _received_us(record: BillerRecord) -> int:
    """When the request was received: its id says so in milliseconds."""
    return int(record.proxy_id[4:16], 16) * 1000 if record.proxy_id is not None else record.created_us
