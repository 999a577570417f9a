"""Meters of the account API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from proxy.emulator import shapes
from proxy.emulator.account_call import AccountCall, Fields, conflict, created, deleted, invalid, missing
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import RateType, StoredMeter, StoredTier, TierType, new_id

if TYPE_CHECKING:
    from proxy.emulator.state import World


def listed(call: AccountCall) -> EmulatedReply:
    return call.page(
        call.world.account.meters.values(), lambda one: one.meter_id, lambda one: shapes.meter(one, old=call.old)
    )


def create(call: AccountCall) -> EmulatedReply:
    """Create a meter; the default slug comes from the name."""
    fields = call.fields
    name = fields.text("name")
    slug = fields.maybe_text("meter_slug") or re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    if not re.fullmatch("[a-z0-9][a-z0-9_-]{0,99}", slug):
        raise invalid("meter_slug has to be of lower-case letters, digits, hyphens and underscores.")
    rate, kind = fields.choice("rate_type", RateType), fields.choice("tier_type", TierType)
    record = StoredMeter(new_id("met_"), slug, name, call.now, rate, kind, _tiers(fields))
    if slug in call.world.account.meters:
        raise conflict("meter_slug_taken", f"There is a meter with the slug {slug!r} already.")
    call.world.account.meters[slug] = record
    return created(shapes.meter(record, old=call.old))


def _tiers(fields: Fields) -> tuple[StoredTier, ...]:
    found = [StoredTier(one.number("start"), one.money("rate")) for one in fields.each("tiers")]
    if not found:
        raise invalid("tiers has to have at least one tier.")
    return tuple(sorted(found, key=lambda tier: tier.start))


def find(world: World, name: str) -> StoredMeter:
    record = world.account.meter_by_id(name)
    if record is None:
        raise missing("meter", name)
    return record


def retrieve(call: AccountCall) -> EmulatedReply:
    return json_reply(shapes.meter(find(call.world, call.name), old=call.old))


def update(call: AccountCall) -> EmulatedReply:
    """Change name and tiers; the slug stays."""
    record, fields = find(call.world, call.name), call.fields
    name, tiers = fields.maybe_text("name"), _tiers(fields) if fields.given("tiers") else record.tiers
    record.name, record.tiers = name or record.name, tiers
    return json_reply(shapes.meter(record, old=call.old))


def delete(call: AccountCall) -> EmulatedReply:
    record = find(call.world, call.name)
    del call.world.account.meters[record.meter_slug]
    return deleted(record.meter_id)
