"""The queries of learned prices."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import and_, delete, func, select, text

from proxy.ledger import columns, schema
from proxy.protocol.token_classes import TokenClasses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection

    from proxy.ledger.bills import NewBill
    from proxy.ledger.learning import Learned, Learning

WARM_ROWS = 2000
"""Billed calls that are read at start, so that learning goes on where it was."""
_AMONG = 50_000
"""The newest requests, among which these are searched: a ledger may have many that were never billed."""
_SET = text(
    "INSERT INTO prices (provider, model, token_class, nano, rows, learned_us) "
    "VALUES (:provider, :model, :token_class, :nano, :rows, :learned_us) "
    "ON CONFLICT (provider, model, token_class) DO UPDATE SET nano = excluded.nano, rows = excluded.rows, "
    "learned_us = excluded.learned_us"
)


class BilledCall(NamedTuple):
    """One billed upstream call, whose request had no other."""

    provider: str
    model: str
    classes: TokenClasses
    billed: int


def load(connection: Connection, learning: Learning) -> None:
    """Pass the stored prices, and the newest billed calls, to ``learning``."""
    providers, models = schema.names.alias(), schema.names.alias()
    prices = schema.prices
    found: dict[tuple[str, str], tuple[dict[str, int], int]] = {}
    for provider, model, token_class, nano, rows in connection.execute(
        select(providers.c.text, models.c.text, prices.c.token_class, prices.c.nano, prices.c.rows)
        .join(providers, providers.c.id == prices.c.provider)
        .join(models, models.c.id == prices.c.model)
    ):
        found.setdefault((provider, model), ({}, rows))[0][token_class] = nano
    for (provider, model), (by_class, rows) in found.items():
        learning.load(provider, model, by_class, rows)
    for call in billed_calls(connection, WARM_ROWS):
        if (call.provider, call.model) not in found:
            learning.observe(call.provider, call.model, call.classes, call.billed)


def billed_calls(connection: Connection, limit: int) -> list[BilledCall]:
    """Return the newest billed calls of requests with one call, oldest first."""
    attempts, requests = schema.attempts, schema.requests
    providers, models, other = schema.names.alias(), schema.names.alias(), attempts.alias()
    counts = [requests.c[name] for name in columns.TOKENS]
    rows = connection.execute(
        select(providers.c.text, models.c.text, attempts.c.billed, *counts)
        .join(requests, requests.c.seq == attempts.c.request)
        .join(providers, providers.c.id == attempts.c.provider)
        .join(models, models.c.id == attempts.c.model)
        .where(attempts.c.bill == columns.Bill.COMPLETED, attempts.c.billed.is_not(None))
        .where(attempts.c.request > select(func.coalesce(func.max(attempts.c.request), 0) - _AMONG).scalar_subquery())
        .where(
            ~select(other.c.number)
            .where(and_(other.c.request == attempts.c.request, other.c.number != attempts.c.number))
            .exists()
        )
        .order_by(attempts.c.request.desc())
        .limit(limit)
    ).all()
    return [BilledCall(row[0], row[1], TokenClasses(*row[3:]), row[2]) for row in reversed(rows)]


def named(connection: Connection, bills: Sequence[NewBill]) -> list[BilledCall]:
    """Return the bills with the names of their providers and models."""
    numbers = {number for each in bills for number in (each.provider, each.model)}
    names = schema.names
    texts = dict(connection.execute(select(names.c.id, names.c.text).where(names.c.id.in_(numbers))).tuples().all())
    return [BilledCall(texts[each.provider], texts[each.model], each.classes, each.billed) for each in bills]


def store(
    connection: Connection,
    changed: Mapping[tuple[str, str], Learned],
    number_of: Callable[[columns.Kind, str], int],
    now_us: int,
) -> None:
    """Store what ``Learning.changed`` returned. ``number_of`` returns the number of a name in ``names``."""
    prices = schema.prices
    for (provider_name, model_name), learned in changed.items():
        provider = number_of(columns.Kind.PROVIDER, provider_name)
        model = number_of(columns.Kind.MODEL, model_name)
        connection.execute(delete(prices).where(prices.c.provider == provider, prices.c.model == model))
        if learned.prices:
            connection.execute(
                _SET,
                [
                    {
                        "provider": provider,
                        "model": model,
                        "token_class": name,
                        "nano": nano,
                        "rows": learned.rows,
                        "learned_us": now_us,
                    }
                    for name, nano in learned.prices.items()
                ],
            )
