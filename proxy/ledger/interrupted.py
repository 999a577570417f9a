"""Requests whose daemon ended before they did: marked, counted with the outcome ``interrupted``, usage and cost unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, select, text

from proxy.ledger import rollups
from proxy.ledger.columns import Kind, State
from proxy.ledger.leases import living
from proxy.ledger.rows import cost_kind
from proxy.ledger.schema import attempts, names, requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from proxy.ledger.names import Names

OUTCOME: Final = "interrupted"
_PER_STEP: Final = 500

_MARK: Final = text("UPDATE requests SET state = :state, outcome = :outcome WHERE seq IN :seqs").bindparams(
    bindparam("seqs", expanding=True)
)


def mark_interrupted(connection: Connection, known: Names, daemon: int, *, biller_asked: bool) -> int:
    """Mark the open requests of daemons that do not live, in the caller's transaction. Return how many.

    ``daemon`` is the number of this one.
    """
    dead = select(requests.c.seq).where(requests.c.state == State.OPEN, requests.c.daemon != daemon)
    if connection.dialect.name == "postgresql":
        alive = select(names.c.id).where(names.c.kind == Kind.DAEMON, names.c.text.in_(living(connection)))
        dead = dead.where(requests.c.daemon.not_in(alive)).with_for_update(skip_locked=True)
    seqs = connection.execute(dead).scalars().all()
    if seqs:
        outcome = known.number(connection, Kind.OUTCOME, OUTCOME)
        for start in range(0, len(seqs), _PER_STEP):
            part = seqs[start : start + _PER_STEP]
            connection.execute(_MARK, {"state": int(State.INTERRUPTED), "outcome": outcome, "seqs": part})
            _count(connection, part, biller_asked, 1)
    return len(seqs)


def subtract(connection: Connection, seqs: Sequence[int], biller_asked: bool) -> None:
    """Take interrupted requests out of the rollups again: their daemon was not dead, but cut off from the database."""
    _count(connection, seqs, biller_asked, -1)


def _count(connection: Connection, seqs: Sequence[int], biller_asked: bool, times: int) -> None:
    columns = (
        *(requests.c[name] for name in ("seq", "received_us", "project", "provider", "asked", "tool", "outcome")),
    )
    more = (requests.c.streamed, requests.c.bytes_in, requests.c.bytes_out)
    rows = connection.execute(select(*columns, *more).where(requests.c.seq.in_(seqs))).all()
    sent = set(
        connection.execute(
            select(attempts.c.request).where(attempts.c.request.in_(seqs), attempts.c.sent == 1)
        ).scalars()
    )
    changes: rollups.Changes = {}
    for seq, received, project, provider, asked, tool, outcome, streamed, bytes_in, bytes_out in rows:
        key = rollups.Key(received // rollups.HOUR_US, project, provider or 0, asked or 0, tool or 0, outcome or 0)
        sums = {
            "requests": 1,
            "streamed_requests": streamed or 0,
            "bytes_in": bytes_in or 0,
            "bytes_out": bytes_out or 0,
        }
        sums |= rollups.cost_columns(cost_kind(seq in sent, None, None, biller_asked), 1, 0)
        rollups.merge(changes, key, sums, {}, times)
    rollups.apply(connection, changes)
