"""Money in words, and where it stands. Needs nothing of the client."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.lava.records import Connection, Customer

_BALANCES = ("balance", "wallet.balance", "wallet_balance", "credit_balance")
"""Names under which some versions of Lava told a customer's; the SDKs of today know none."""


def dollars(amount: Decimal | None) -> str:
    """Money for people: cents, and below a dollar as many digits as say something; empty where it is not known."""
    if amount is None:
        return ""
    if not amount.is_finite() or amount.adjusted() > 18:
        return f"${amount}"
    places = min(12, max(2, 2 - amount.adjusted())) if amount else 2
    whole, _, part = f"{abs(amount):,.{places}f}".partition(".")
    sign = "-" if amount < 0 else ""
    return f"{sign}${whole}.{part.rstrip('0').ljust(2, '0')}"


def balance_of(record: Customer | Connection) -> Decimal | None:
    """What is in a customer's wallet, in dollars; ``None`` where Lava does not say."""
    told = record.model_extra or {}
    for name in _BALANCES:
        above, _, below = name.rpartition(".")
        table = told.get(above) if above else told
        value = table.get(below) if isinstance(table, dict) else None
        if value is not None:
            try:
                return Decimal(str(value))
            except InvalidOperation:
                continue
    return None
