"""Amounts as text, and the balance of a customer. Independent of the client."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.lava.records import Connection, Customer

_BALANCES = ("balance", "wallet.balance", "wallet_balance", "credit_balance")
"""Names of a customer's balance in some versions of Lava; the current SDKs have none."""


def dollars(amount: Decimal | None) -> str:
    """Return an amount for people: cents, and below a dollar all significant digits; empty if it is not known."""
    if amount is None:
        return ""
    if not amount.is_finite() or amount.adjusted() > 18:
        return f"${amount}"
    places = min(12, max(2, 2 - amount.adjusted())) if amount else 2
    whole, _, part = f"{abs(amount):,.{places}f}".partition(".")
    sign = "-" if amount < 0 else ""
    return f"{sign}${whole}.{part.rstrip('0').ljust(2, '0')}"


def balance_of(record: Customer | Connection) -> Decimal | None:
    """Return the balance of a customer's wallet, in dollars, or None if Lava does not send it."""
    extra = record.model_extra or {}
    for name in _BALANCES:
        above, _, below = name.rpartition(".")
        table = extra.get(above) if above else extra
        value = table.get(below) if isinstance(table, dict) else None
        if value is not None:
            try:
                return Decimal(str(value))
            except InvalidOperation:
                continue
    return None
