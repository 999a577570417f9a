"""Show Lava's records: as JSON for scripts, as tables and pairs for people. Secrets only if an action exists for them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from proxy.cli.payers import masked
from proxy.lava.records import ApiRecord
from proxy.protocol.redaction import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from proxy.cli.terminal import Screen
    from proxy.lava.resources import Action

_MAX_COLUMNS = 7

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "Connection": (
        *("connection_id", "customer.first_name", "customer.last_name", "customer.email", "has_lava_credit_balance"),
        *("subscription.name", "created_at"),
    ),
    "Customer": (
        *("customer_id", "reference_id", "contact.first_name", "contact.last_name", "contact.email"),
        *("subscription.name", "created_at"),
    ),
    "Request": (
        *("request_id", "status", "customer_id", "connection_id", "provider", "model", "model_usage.total_tokens"),
        *("cost", "charge.amount", "total_request_cost", "created_at"),
    ),
    "Subscription": (
        *("subscription_id", "customer_id", "connection_id", "status", "plan.name", "credits.total_remaining"),
        "cycle_end_at",
    ),
    "Plan": ("plan_id", "name", "period_amount", "billing_interval", "included_credit", "created_at"),
    "SubscriptionConfig": (
        *("subscription_config_id", "name", "period_amount", "billing_interval", "included_credit", "created_at"),
    ),
    "Meter": ("meter_id", "meter_slug", "name", "rate_type", "tier_type", "tiers", "created_at"),
    "SpendKey": (
        *("spend_key_id", "name", "status", "key_preview", "request_shape", "spend_limit.amount", "spend_limit.cycle"),
        *("current_spend", "total_spend", "rate_limit.rpm", "last_used_at"),
    ),
    "UsageDay": (
        *("date", "total_requests", "total_usage_tokens", "total_cost", "total_charge"),
        *("total_request_cost", "total_wallet_cost"),
    ),
    "ApiModel": ("id", "owned_by", "created"),
}
"""The columns of a list, by the class of its records. For any other class: the first fields with a value."""


def revealed(row: Action) -> Callable[[str], bool]:
    """Return which secret fields of this action's answer are shown: only those that the action exists for."""
    return lambda name: row.once or name in row.reveals


def hidden(name: str) -> bool:
    """Show no secret field."""
    return False


def plain(value: Any, shows: Callable[[str], bool] = hidden, name: str = "") -> Any:
    """Return a record as JSON values: only what Lava sent, money as decimal strings, times as ISO 8601."""
    if isinstance(value, ApiRecord):
        sent = value.model_fields_set
        # ``__repr_args__`` also masks unknown fields that are named like a secret.
        return {str(name): plain(each, shows, str(name)) for name, each in value.__repr_args__() if name in sent}
    if isinstance(value, Secret):
        return value.reveal() if shows(name) else masked(value.reveal())
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): plain(each, shows, str(key)) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, shows, name) for each in value]
    return value


def flat(value: Any, shows: Callable[[str], bool] = hidden, above: str = "") -> dict[str, Any]:
    """Return a record as dotted names and single values, without empty ones."""
    found: dict[str, Any] = {}
    items = value.__repr_args__() if isinstance(value, ApiRecord) else value.items()
    for key, each in items:
        name = f"{above}{key}"
        if isinstance(each, (ApiRecord, dict)):
            found |= flat(each, shows, f"{name}.")
        elif isinstance(each, Secret):
            found[name] = each.reveal() if shows(str(key)) else masked(each.reveal())
        elif isinstance(each, (list, tuple)):
            found[name] = ", ".join(filter(None, (_entry(one, shows) for one in each)))
        else:
            found[name] = each
    return {name: each for name, each in found.items() if each not in (None, "")}


def _entry(value: Any, shows: Callable[[str], bool]) -> str:
    if isinstance(value, (ApiRecord, dict)):
        return " ".join(f"{name}={text(each)}" for name, each in flat(value, shows).items())
    return text(value)


def text(value: Any) -> str:
    """Return one value for people. Times are local."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        try:
            return value.astimezone().strftime("%Y-%m-%d %H:%M")
        except (ValueError, OverflowError, OSError):  # a year that the system's calendar does not have
            return value.isoformat()
    return str(value)


def show_one(screen: Screen, record: ApiRecord, shows: Callable[[str], bool] = hidden) -> None:
    """Print the fields, one in each line, and lists of records as tables below."""
    lists = {
        name: each
        for name, each in record
        if isinstance(each, tuple) and each and all(isinstance(one, ApiRecord) for one in each)
    }
    found = {name: each for name, each in flat(record, shows).items() if name not in lists}
    screen.pairs([(name, text(value)) for name, value in found.items()])
    for name, each in lists.items():
        screen.title(name.replace("_", " ").capitalize())
        show_many(screen, each)
    if not found and not lists:
        # The requested thing is null, or the answer only reports success.
        screen.line("There is none." if record.model_fields_set else "Done.")


def show_many(screen: Screen, records: Sequence[ApiRecord], columns: Iterable[str] | None = None) -> None:
    """Print a table, without columns that are empty in all records."""
    if not records:
        screen.line("There are none.")
        return
    rows = [flat(record) for record in records]
    there = list(dict.fromkeys(name for row in rows for name in row))
    wanted = columns or COLUMNS.get(type(records[0]).__name__) or there[:_MAX_COLUMNS]
    shown = [name for name in wanted if name in there]
    numbers = {
        at
        for at, name in enumerate(shown)
        if all(
            isinstance(row.get(name), (int, Decimal, type(None))) and not isinstance(row.get(name), bool)
            for row in rows
        )
    }
    heads = [name.replace("_", " ").replace(".", " ") for name in shown]
    # A line end in a cell would tear the table.
    cells = [[" ".join(text(row.get(name)).split("\n")) for name in shown] for row in rows]
    screen.table(heads, cells, numbers=numbers)
