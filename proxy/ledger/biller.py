"""A record of the biller, as far as the ledger needs it."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.ledger.columns import Bill
from proxy.protocol.headers import PROXY_ID
from proxy.protocol.money import NANO_PER_DOLLAR

if TYPE_CHECKING:
    from datetime import datetime

    from proxy.lava.records import Request

OWN_ID: Final = re.compile(r"req_[0-9a-f]{24}")
_BILLS: Final = {"pending": Bill.PENDING, "completed": Bill.COMPLETED, "error": Bill.UNMETERED}


class BillerRecord(NamedTuple):
    """``proxy_id`` is our request id in its metadata. ``nano`` is its cost in billionths of a dollar, if it is completed."""

    id: str
    bill: Bill
    created_us: int
    nano: int | None
    proxy_id: str | None
    response_id: str | None
    provider: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    customer: str | None


def nano_of(amount: Decimal) -> int:
    """Return dollars as billionths of a dollar, rounded to even: the sum of n of them is right to n / 2."""
    return int((amount * NANO_PER_DOLLAR).to_integral_value(ROUND_HALF_EVEN))


def microseconds(moment: datetime) -> int:
    """Return a time in microseconds UTC."""
    return round(moment.timestamp() * 1_000_000)


def read(request: Request, now_us: int) -> BillerRecord:
    """Return what the ledger needs of a record. One without a time has ``now_us``; an unknown status is one not decided yet."""
    bill = _BILLS.get(request.status or "", Bill.PENDING)
    used = request.model_usage
    cost = request.cost if request.cost is not None else request.total_request_cost
    if cost is None and used is not None:
        cost = used.total_cost
    created = request.created_at or request.timestamp
    pair = (request.metadata or {}).get(PROXY_ID)
    return BillerRecord(
        request.request_id,
        bill,
        microseconds(created) if created is not None else now_us,
        nano_of(cost) if cost is not None and bill is Bill.COMPLETED else None,
        pair if isinstance(pair, str) and OWN_ID.fullmatch(pair) else None,
        request.response_id or None,
        request.provider,
        request.model,
        used.input_tokens if used is not None else None,
        used.output_tokens if used is not None else None,
        request.customer_id or request.connection_id,
    )
