"""A command that reads the ledger: opens it, and turns every failure into one sentence and exit code 1; and what all show.

Every amount is shown with its source (``proxy/ledger/costs.py``): billed, pending, estimated, unmetered or unknown.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from proxy.cli import loading, terminal, times
from proxy.lava.money import dollars
from proxy.ledger import queries, reading
from proxy.ledger.costs import Source
from proxy.ledger.reading import Book

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from proxy.ledger.costs import RequestCost
    from proxy.ledger.queries import Row, Totals

_WIDEST = 28
"""Characters of a name in a table."""


def ask(config: Path | None, work: Callable[[Book], int], *, as_json: bool, make: bool = False) -> int:
    """Do ``work`` with the configured ledger and return its exit code, or 1 and why it could not be done.

    ``make``: a file that is missing is made. Exits with 78 if the configuration cannot be used.
    """
    settings = loading.settings(config, as_json=as_json)
    try:
        if make:
            from proxy.ledger import upkeep

            upkeep.make_missing(settings.ledger)
        return work(Book(settings, reading.open_readonly(settings.ledger)))
    except reading.LedgerUnreadableError as error:
        return terminal.failed(str(error), as_json=as_json, code="ledger_unreadable")
    except queries.UnknownNameError as error:
        there = f" There are: {', '.join(error.known)}." if error.known else ""
        return terminal.failed(f"{error}{there}", as_json=as_json, code="not_in_ledger")
    except times.UsageError as error:
        return terminal.misused(str(error))


def now_us() -> int:
    """Return the time, in microseconds UTC."""
    return microseconds(datetime.now(UTC))


def microseconds(moment: datetime) -> int:
    """Return a time in microseconds UTC."""
    return round(moment.timestamp() * 1_000_000)


def time_of(us: int) -> datetime:
    """Return a time of the ledger, local."""
    return datetime.fromtimestamp(us / 1_000_000, UTC).astimezone()


def iso(us: int) -> str:
    """Return a time of the ledger for scripts: UTC, to the microsecond."""
    seconds, rest = divmod(us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06}Z"


def begin_us(since: str | None) -> int | None:
    """Return the time that ``--since`` means: a span of days begins at midnight. Raises ``UsageError``."""
    if since is None:
        return None
    return microseconds(times.begin(since, datetime.now(UTC).astimezone()))


def decimal(nano: int) -> Decimal:
    """Return billionths of a dollar as dollars."""
    return Decimal(nano).scaleb(-9)


def usd(nano: int | None) -> str | None:
    """Return billionths of a dollar as dollars, for scripts: all nine places."""
    return None if nano is None else f"{decimal(nano):.9f}"


def money(nano: int) -> str:
    """Return billionths of a dollar for people."""
    return dollars(decimal(nano))


def requests(number: int) -> str:
    """Return a number of requests in words."""
    return f"{number:,} request{'' if number == 1 else 's'}"


def short(text: str, room: int = _WIDEST) -> str:
    """Return ``text``, cut in its middle to at most ``room`` characters."""
    if len(text) <= room:
        return text
    behind = (room - 1) // 2
    return f"{text[: room - 1 - behind]}…{text[len(text) - behind :]}"


def cost_words(cost: RequestCost) -> str:
    """Return a request's cost with its source, for people; ``~`` marks an estimate, ``>`` what is not all of it."""
    if cost.source is Source.NONE:
        return "–"
    if cost.nano is None:
        return cost.source.word
    exact = cost.pending is None and cost.estimated is None
    mark = ">" if cost.source is Source.UNKNOWN else "" if exact else "~"
    return f"{mark}{_brief(cost.nano)} {cost.source.word}"


def _brief(nano: int) -> str:
    """Billionths of a dollar in at most nine characters, as far as there are fewer than a thousand dollars."""
    if 0 < nano < 1000:
        return "$0.000001" if nano >= 500 else "$0.000000"
    return money(nano if nano >= 10**9 else round(nano, -3))


def sources(sums: Totals) -> list[tuple[Source, int, int | None]]:
    """Return source, number of requests and amount (``None``: it has none) of what there is."""
    rows = [
        (Source.BILLED, sums.billed_requests, sums.billed),
        (Source.PENDING, sums.pending_requests, estimate(sums.pending, sums.pending_requests)),
        (Source.ESTIMATED, sums.estimated_requests, estimate(sums.estimated, sums.estimated_requests)),
        (Source.UNMETERED, sums.unmetered_requests, None),
        (Source.UNKNOWN, sums.unknown_requests, None),
    ]
    return [(source, count, amount) for source, count, amount in rows if count or amount]


def estimate(amount: int, requests: int) -> int | None:
    """Return the amount of estimated or pending requests; ``None`` if none of them has an estimate: that is not 0."""
    return None if requests and not amount else amount


def total(sums: Totals) -> int | None:
    """Return what is known of the cost; ``None`` if there is a cost, and nothing is known of it."""
    unpriced = sums.pending_requests or sums.unmetered_requests or sums.estimated_requests or sums.unknown_requests
    return None if unpriced and not (sums.nano or sums.billed_requests) else sums.nano


def price_words(tables: Iterable[str]) -> str:
    """Return price tables, each with its version and date, in words."""
    from proxy.ledger.pricing import LEARNED

    return " or ".join(
        "prices learned from Lava's bills" if each == LEARNED else each for each in dict.fromkeys(tables)
    )


def sums_for_scripts(sums: Totals) -> dict[str, Any]:
    """Return sums as JSON values: money as decimal strings."""
    found: dict[str, Any] = sums._asdict()
    for name in ("billed", "pending", "estimated"):
        del found[name]
    found["cost_usd"] = usd(total(sums))
    found["billed_usd"] = usd(sums.billed)
    found["pending_usd"] = usd(estimate(sums.pending, sums.pending_requests))
    found["estimated_usd"] = usd(estimate(sums.estimated, sums.estimated_requests))
    return found


def row_for_scripts(row: Row) -> dict[str, Any]:
    """Return a request as JSON values, the columns of ``export``: times in UTC, money as decimal strings."""
    return {
        "id": row.id,
        "received": iso(row.received_us),
        "first_byte_ms": None if row.first_byte_us is None else row.first_byte_us / 1000,
        "duration_ms": None if row.duration_us is None else row.duration_us / 1000,
        "project": row.project,
        "provider": row.provider,
        "model_asked": row.asked,
        "model_served": row.served,
        "dialect": row.dialect,
        "endpoint": row.endpoint,
        "streamed": row.streamed,
        "state": row.state.name.lower(),
        "outcome": row.outcome,
        "status": row.status,
        "error": row.error,
        "bytes_in": row.bytes_in,
        "bytes_out": row.bytes_out,
        "tool": row.tool,
        "session": row.session,
        "agent": row.agent,
        "tags": row.tags,
        **row.tokens,
        "attempts": row.attempts,
        "lava_request_id": row.lava_id,
        "cost_source": row.cost.source.word,
        "cost_usd": usd(row.cost.nano),
        "billed_usd": usd(row.cost.billed),
        "pending_usd": usd(row.cost.pending),
        "estimated_usd": usd(row.cost.estimated),
        "prices": row.prices,
    }
