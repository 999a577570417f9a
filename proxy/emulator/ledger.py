"""Requests and usage of the account API: what went through the gateway, and what was reported beside it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from proxy.emulator import outbox, shapes
from proxy.emulator.asking import Ask, conflict, created, invalid, missing, parsed
from proxy.emulator.credentials import take
from proxy.emulator.customers import find
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import Consumption, Entry

if TYPE_CHECKING:
    from datetime import date

    from proxy.emulator.asking import Fields

ENDPOINT = "POST https://api.lava.so/v1/requests"
"""What a reported request has in place of the provider's address."""


def _chosen(ask: Ask) -> list[Entry]:
    """The lines that the query's filters let through."""
    customer, meter, pairs = ask.customer_id(), ask.query.get("meter_id"), ask.filters()
    return [
        entry
        for entry in ask.world.ledger
        if customer in (None, entry.customer_id)
        and meter in (None, entry.meter and entry.meter.meter_id)
        and all(entry.metadata.get(name) == value for name, value in pairs)
    ]


def listed(ask: Ask) -> EmulatedReply:
    """``GET requests``"""
    return ask.page(_chosen(ask), lambda one: one.request_id, lambda one: shapes.request(one, old=ask.old))


def retrieve(ask: Ask) -> EmulatedReply:
    """``GET requests/{id}``"""
    found = ask.world.entry(ask.name)
    if found is None:
        raise missing("request", ask.name)
    return json_reply(shapes.request(found, old=ask.old))


def report(ask: Ask) -> EmulatedReply:
    """``POST requests``: use that did not go through the gateway. The customer is charged by the meter.

    What a known ``request_id`` does at Lava is not known; here it is refused (409).
    """
    world, fields = ask.world, ask.fields
    name = fields.text("request_id")
    customer = find(world, fields.text("connection_id" if ask.old else "customer_id"))
    slug = fields.text("meter_slug")
    meter = world.meters.get(slug)
    if meter is None:
        raise missing("meter", slug)
    if world.entry(name) is not None:
        raise conflict("request_already_exists", f"There is a request {name!r} already.")
    used, metadata = _used(fields), fields.pairs("metadata") or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise fields.wrong("metadata", "an object of strings")
    entry = Entry(name, "completed", "custom", ENDPOINT, ask.now, customer.connection_id, meter, "unmanaged")
    entry.used, entry.metadata, entry.reported = used, metadata, True
    entry.charge = entry.paid = meter.price(entry.cost, used)
    if entry.charge:
        take(world, customer, meter, entry.charge)
        outbox.announce(world, "wallet.balance.updated", customer)
    world.write(entry)
    return created(shapes.request(entry, old=ask.old))


def _used(fields: Fields) -> Consumption:
    def count(name: str) -> int:
        return fields.whole(name) if fields.given(name) else 0

    return Consumption(
        count("input_tokens"),
        count("output_tokens"),
        count("input_characters"),
        count("output_characters"),
        fields.number("input_seconds"),
        fields.number("output_seconds"),
    )


def usage(ask: Ask) -> EmulatedReply:
    """``GET usage``: the completed requests by day, in the time zone of ``start``. Days without requests are left out."""
    start, end = _instant(ask, "start"), _instant(ask, "end")
    if start is None:
        raise invalid("start is missing: an instant as ISO 8601, whose offset is the time zone of the days.")
    if end is None:
        end = datetime.fromtimestamp(ask.now, start.tzinfo)
    if end < start:
        raise invalid("end lies before start.")
    days: dict[date, list[Entry]] = {}
    within = []
    for entry in _chosen(ask):
        if entry.status == "completed" and start.timestamp() <= entry.created_at <= end.timestamp():
            within.append(entry)
            days.setdefault(datetime.fromtimestamp(entry.created_at, start.tzinfo).date(), []).append(entry)
    items = []
    for day in sorted(days):
        begins = datetime(day.year, day.month, day.day, tzinfo=start.tzinfo)
        ends = begins + timedelta(days=1, milliseconds=-1)
        items.append(
            {
                "date": day.isoformat(),
                "start": begins.isoformat(timespec="milliseconds"),
                "end": ends.isoformat(timespec="milliseconds"),
                **shapes.totals(days[day], old=ask.old),
            }
        )
    return json_reply({"items": items, "totals": shapes.totals(within, old=ask.old)})


def _instant(ask: Ask, name: str) -> datetime | None:
    given = ask.query.get(name)
    if given is None:
        return None
    found = parsed(given)
    if found is None:
        raise invalid(f"{name} has to be an instant as ISO 8601.")
    return found
