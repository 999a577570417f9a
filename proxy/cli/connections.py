"""``lava-proxy connections``: the customers whose wallets and plans pay, with their credit as far as the API has it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from proxy.cli import account
from proxy.cli.terminal import Exit, Screen, put_json, say
from proxy.lava.errors import LavaError, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from proxy.lava import LavaSync
    from proxy.lava.records import Connection, Customer, Subscription


def run(config: Path | None, *, limit: int, as_json: bool) -> int:
    """Show up to `limit` customers and return the exit code."""
    return account.ask(config, lambda lava: _show(lava, limit, as_json), as_json=as_json)


def _show(lava: LavaSync, limit: int, as_json: bool) -> int:
    from proxy.cli.rendering import plain

    # One more than is shown, to know whether there are more.
    found = _customers(lava, limit + 1)
    more, found = len(found) > limit, found[:limit]
    plans, complete = _plans(lava) if found else ({}, True)
    if as_json:
        rows = [{**plain(each), "plan": plain(plans.get(_id(each)))} for each in found]
        put_json({"data": rows, "has_more": more})
        return Exit.OK
    screen = Screen()
    if not found:
        screen.line("There are none.")
        return Exit.OK
    screen.records([_cells(each, plans.get(_id(each))) for each in found], numbers=("balance", "credit left"))
    if more:
        say(f"There are more: --limit N shows more than {limit}.")
    if not complete:
        say("Note: the plans and their credit are missing: Lava did not answer that request.")
    return Exit.OK


def _customers(lava: LavaSync, count: int) -> list[Customer | Connection]:
    """Return the customers, under the name of SDK 8 if Lava does not have the current one."""
    try:
        return list(islice(lava.customers.list(), count))
    except NotFound:
        return list(islice(lava.connections.list(), count))


def _id(record: Customer | Connection | Subscription) -> str:
    return getattr(record, "customer_id", None) or getattr(record, "connection_id", None) or ""


def _plans(lava: LavaSync) -> tuple[Mapping[str, Subscription], bool]:
    """Return the active subscriptions by customer, and whether they are complete. One call for each page."""
    try:
        return {_id(each): each for each in lava.subscriptions.list(status="active")}, True
    except LavaError:
        return {}, False  # the list is useful without them


def _cells(record: Customer | Connection, plan: Subscription | None) -> dict[str, str]:
    from proxy.cli.rendering import flat, text
    from proxy.lava.money import balance_of, dollars

    values: dict[str, Any] = flat(record)
    who = getattr(record, "contact", None) or getattr(record, "customer", None)
    name = " ".join(filter(None, (who.first_name, who.last_name))) if who is not None else ""
    summary = record.subscription
    credits = plan.credits if plan is not None else None
    return {
        "id": _id(record),
        "name": name or (who.email if who is not None else "") or "",
        "reference": values.get("reference_id", ""),
        "balance": dollars(balance_of(record)),
        "has credit": text(values.get("has_lava_credit_balance")),
        "plan": (plan.plan.name if plan is not None and plan.plan else None) or (summary.name if summary else "") or "",
        "credit left": dollars(credits.total_remaining) if credits is not None else "",
        "renews": text(plan.cycle_end_at) if plan is not None else "",
        "since": text(record.created_at),
    }
