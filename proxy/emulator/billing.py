"""Requests and usage of the account API: what went through the gateway, and what was reported."""

from __future__ import annotations

from datetime import datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from proxy.emulator import shapes, webhooks
from proxy.emulator.account_call import AccountCall, conflict, created, find, invalid, missing, parsed
from proxy.emulator.credentials import charge_customer
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import Consumption, StoredRequest, new_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date

    from proxy.emulator.account_call import Fields

ENDPOINT = "POST https://api.lava.so/v1/requests"
"""The endpoint in a reported record."""


def _matches(call: AccountCall) -> Callable[[StoredRequest], bool]:
    customer, meter, pairs = call.customer_id(), call.query.get("meter_id"), call.filters()
    return lambda record: (
        customer in (None, record.customer_id)
        and meter in (None, record.meter and record.meter.meter_id)
        and all(record.metadata.get(name) == value for name, value in pairs)
    )


def _shown(call: AccountCall, record: StoredRequest) -> dict[str, Any]:
    return shapes.request(record.seen(call.now) or record, old=call.old)


def listed(call: AccountCall) -> EmulatedReply:
    now, matches = call.now, _matches(call)
    return call.page(
        call.world.billing.records.values(),
        attrgetter("request_id"),
        lambda one: _shown(call, one),
        lambda one: one.seen(now) is not None and matches(one),
    )


def retrieve(call: AccountCall) -> EmulatedReply:
    found = find(call.world.billing.records, "request", call.name)
    if found.seen(call.now) is None:
        raise missing("request", call.name)
    return json_reply(_shown(call, found))


def report(call: AccountCall) -> EmulatedReply:
    """Report usage that did not go through the gateway; the customer is charged by the meter.

    What a repeated ``request_id`` does at Lava is not known; ``Biller.repeated`` decides.
    """
    world, fields = call.world, call.fields
    name = fields.text("request_id")
    customer = find(world.account.connections, "customer", fields.text("connection_id" if call.old else "customer_id"))
    slug = fields.text("meter_slug")
    meter = find(world.account.meters, "meter", slug)
    first, biller = world.billing.records.get(name), world.behaviour.biller
    if first is not None and biller.repeated == "conflict":
        raise conflict("request_already_exists", f"There is a request {name!r} already.")
    if first is not None and biller.repeated == "first":
        return json_reply(_shown(call, first))
    if first is not None:
        name = new_id("req_")
    used, metadata = _used(fields), fields.pairs("metadata") or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise fields.wrong("metadata", "an object of strings")
    record = StoredRequest(name, "completed", "custom", ENDPOINT, call.now, customer.connection_id, meter, "unmanaged")
    record.used, record.metadata, record.reported = used, metadata, True
    record.charge = record.paid = meter.price(record.cost, used)
    if record.charge:
        charge_customer(world, customer, meter, record.charge)
        webhooks.send_event(world, "wallet.balance.updated", customer)
    world.billing.add(record, biller.keep)
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
    """Return the sums of completed requests by day, in the time zone of ``start``, without empty days.

    They are the sums of the listed records, and of lost ones if ``Biller.lost_in_usage``.
    """
    start, end = _instant(call, "start"), _instant(call, "end")
    if start is None:
        raise invalid("start is missing: an instant as ISO 8601, whose offset is the time zone of the days.")
    if end is None:
        end = datetime.fromtimestamp(call.now, start.tzinfo)
    if end < start:
        raise invalid("end lies before start.")
    days: dict[date, list[StoredRequest]] = {}
    within = []
    matches, first, last = _matches(call), start.timestamp(), end.timestamp()
    with_lost = call.world.behaviour.biller.lost_in_usage
    for record in call.world.billing.records.values():
        billed = record.status == "completed" and record.final_at <= call.now and (with_lost or not record.lost)
        if billed and first <= record.created_at <= last and matches(record):
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
