"""Requests and usage of the account API: what went through the gateway, and what was reported."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from proxy.emulator import shapes, webhooks
from proxy.emulator.account_call import AccountCall, conflict, created, find, invalid, missing, parsed
from proxy.emulator.credentials import charge_customer
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import Consumption, StoredRequest

if TYPE_CHECKING:
    from datetime import date

    from proxy.emulator.account_call import Fields

ENDPOINT = "POST https://api.lava.so/v1/requests"
"""The endpoint in a reported record."""


def _chosen(call: AccountCall) -> list[StoredRequest]:
    customer, meter, pairs = call.customer_id(), call.query.get("meter_id"), call.filters()
    return [
        record
        for record in call.world.billing.records
        if customer in (None, record.customer_id)
        and meter in (None, record.meter and record.meter.meter_id)
        and all(record.metadata.get(name) == value for name, value in pairs)
    ]


def listed(call: AccountCall) -> EmulatedReply:
    return call.page(_chosen(call), lambda one: one.request_id, lambda one: shapes.request(one, old=call.old))


def retrieve(call: AccountCall) -> EmulatedReply:
    found = call.world.billing.find(call.name)
    if found is None:
        raise missing("request", call.name)
    return json_reply(shapes.request(found, old=call.old))


def report(call: AccountCall) -> EmulatedReply:
    """Report usage that did not go through the gateway; the customer is charged by the meter.

    What a repeated ``request_id`` does at Lava is not known; here it is refused (409).
    """
    world, fields = call.world, call.fields
    name = fields.text("request_id")
    customer = find(world.account.connections, "customer", fields.text("connection_id" if call.old else "customer_id"))
    slug = fields.text("meter_slug")
    meter = find(world.account.meters, "meter", slug)
    if world.billing.find(name) is not None:
        raise conflict("request_already_exists", f"There is a request {name!r} already.")
    used, metadata = _used(fields), fields.pairs("metadata") or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise fields.wrong("metadata", "an object of strings")
    record = StoredRequest(name, "completed", "custom", ENDPOINT, call.now, customer.connection_id, meter, "unmanaged")
    record.used, record.metadata, record.reported = used, metadata, True
    record.charge = record.paid = meter.price(record.cost, used)
    if record.charge:
        charge_customer(world, customer, meter, record.charge)
        webhooks.send_event(world, "wallet.balance.updated", customer)
    world.billing.add(record, world.behaviour.keep)
    return created(shapes.request(record, old=call.old))


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


def usage(call: AccountCall) -> EmulatedReply:
    """Return the completed requests by day, in the time zone of ``start``, without empty days."""
    start, end = _instant(call, "start"), _instant(call, "end")
    if start is None:
        raise invalid("start is missing: an instant as ISO 8601, whose offset is the time zone of the days.")
    if end is None:
        end = datetime.fromtimestamp(call.now, start.tzinfo)
    if end < start:
        raise invalid("end lies before start.")
    days: dict[date, list[StoredRequest]] = {}
    within = []
    for record in _chosen(call):
        if record.status == "completed" and start.timestamp() <= record.created_at <= end.timestamp():
            within.append(record)
            days.setdefault(datetime.fromtimestamp(record.created_at, start.tzinfo).date(), []).append(record)
    items = []
    for day in sorted(days):
        begins = datetime(day.year, day.month, day.day, tzinfo=start.tzinfo)
        ends = begins + timedelta(days=1, milliseconds=-1)
        items.append(
            {
                "date": day.isoformat(),
                "start": begins.isoformat(timespec="milliseconds"),
                "end": ends.isoformat(timespec="milliseconds"),
                **shapes.totals(days[day], old=call.old),
            }
        )
    return json_reply({"items": items, "totals": shapes.totals(within, old=call.old)})


def _instant(call: AccountCall, name: str) -> datetime | None:
    given = call.query.get(name)
    if given is None:
        return None
    found = parsed(given)
    if found is None:
        raise invalid(f"{name} has to be an instant as ISO 8601.")
    return found
