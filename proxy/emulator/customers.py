"""Customers of the account API; ``connections`` are the same records in SDK 8's words."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from proxy.emulator import outbox, shapes
from proxy.emulator.asking import Ask, created, missing, success
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import StoredConnection, new_id

if TYPE_CHECKING:
    from proxy.emulator.asking import Fields
    from proxy.emulator.state import World


def listed(ask: Ask) -> EmulatedReply:
    """``GET customers``"""
    records = ask.world.connections.values()
    return ask.page(records, lambda one: one.connection_id, lambda one: shapes.customer(ask.world, one, old=ask.old))


def create(ask: Ask) -> EmulatedReply:
    """``POST customers``: everything is optional."""
    return created(shapes.customer(ask.world, add(ask.world, ask.fields), old=ask.old))


def add(world: World, fields: Fields) -> StoredConnection:
    """A new customer with an empty wallet; the webhooks hear of it."""
    # Lava's ids of customers often still begin like this.
    record = StoredConnection(new_id("conn_"), Decimal("0.00"), created_at=world.clock())
    _fill(record, fields)
    world.connections[record.connection_id] = record
    outbox.announce(world, "created", record)
    return record


def _fill(record: StoredConnection, fields: Fields) -> None:
    # Read all before changing any: a refused change leaves the record as it was.
    reference, name = fields.maybe_text("reference_id"), fields.maybe_text("name")
    email, phone, metadata = fields.maybe_text("email"), fields.maybe_text("phone"), fields.pairs("metadata")
    if "reference_id" in fields:
        record.reference_id = reference
    if "name" in fields:
        record.called(name)
    if "email" in fields:
        record.email = email or ""
    if "phone" in fields:
        record.phone = phone or ""
    if "metadata" in fields:
        record.metadata = metadata


def find(world: World, name: str) -> StoredConnection:
    """The customer with this id; raises ``Refused`` (404)."""
    record = world.connections.get(name)
    if record is None:
        raise missing("customer", name)
    return record


def retrieve(ask: Ask) -> EmulatedReply:
    """``GET customers/{id}``"""
    return json_reply(shapes.customer(ask.world, find(ask.world, ask.name), old=ask.old))


def update(ask: Ask) -> EmulatedReply:
    """``PATCH customers/{id}``: null empties a field."""
    record = find(ask.world, ask.name)
    _fill(record, ask.fields)
    return json_reply(shapes.customer(ask.world, record, old=ask.old))


def delete(ask: Ask) -> EmulatedReply:
    """``DELETE customers/{id}``: its forward tokens are dead at once and its subscription ends."""
    record = find(ask.world, ask.name)
    outbox.announce(ask.world, "deleted", record)
    subscribed = ask.world.subscription_of(record.connection_id)
    if subscribed is not None:
        subscribed.ends_at = ask.now
    del ask.world.connections[record.connection_id]
    return success()
