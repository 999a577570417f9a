"""Customers of the account API; SDK 8 calls them connections."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from proxy.emulator import shapes, webhooks
from proxy.emulator.account_call import AccountCall, created, find, success
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import StoredConnection, new_id

if TYPE_CHECKING:
    from proxy.emulator.account_call import Fields
    from proxy.emulator.state import World


def listed(call: AccountCall) -> EmulatedReply:
    records = call.world.account.connections.values()
    return call.page(records, lambda one: one.connection_id, lambda one: shapes.customer(call.world, one, old=call.old))


def create(call: AccountCall) -> EmulatedReply:
    return created(shapes.customer(call.world, add(call.world, call.fields), old=call.old))


def add(world: World, fields: Fields) -> StoredConnection:
    """Add a customer with an empty wallet, and send its event."""
    # Lava's customer ids often still have this prefix.
    record = StoredConnection(new_id("conn_"), Decimal("0.00"), created_at=world.clock())
    _fill(record, fields)
    world.account.connections[record.connection_id] = record
    webhooks.send_event(world, "created", record)
    return record


def _fill(record: StoredConnection, fields: Fields) -> None:
    # Read every field first: a refused change must not change the record.
    reference, name = fields.maybe_text("reference_id"), fields.maybe_text("name")
    email, phone, metadata = fields.maybe_text("email"), fields.maybe_text("phone"), fields.pairs("metadata")
    if "reference_id" in fields:
        record.reference_id = reference
    if "name" in fields:
        record.set_name(name)
    if "email" in fields:
        record.email = email or ""
    if "phone" in fields:
        record.phone = phone or ""
    if "metadata" in fields:
        record.metadata = metadata


def _find(call: AccountCall) -> StoredConnection:
    return find(call.world.account.connections, "customer", call.name)


def retrieve(call: AccountCall) -> EmulatedReply:
    return json_reply(shapes.customer(call.world, _find(call), old=call.old))


def update(call: AccountCall) -> EmulatedReply:
    """Change a customer; null empties a field."""
    record = _find(call)
    _fill(record, call.fields)
    return json_reply(shapes.customer(call.world, record, old=call.old))


def delete(call: AccountCall) -> EmulatedReply:
    """Delete a customer; its forward tokens become invalid and its subscription ends."""
    record = _find(call)
    webhooks.send_event(call.world, "deleted", record)
    subscribed = call.world.account.subscription_of(record.connection_id, call.now)
    if subscribed is not None:
        subscribed.ends_at = call.now
    del call.world.account.connections[record.connection_id]
    return success()
