"""Meters of the account API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from proxy.emulator import shapes
from proxy.emulator.asking import Ask, Fields, conflict, created, deleted, invalid, missing
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import RateType, StoredMeter, StoredTier, TierType, new_id

if TYPE_CHECKING:
    from proxy.emulator.state import World


def listed(ask: Ask) -> EmulatedReply:
    """``GET meters``"""
    return ask.page(ask.world.meters.values(), lambda one: one.meter_id, lambda one: shapes.meter(one, old=ask.old))


def create(ask: Ask) -> EmulatedReply:
    """``POST meters``: without a slug it is made from the name."""
    fields = ask.fields
    name = fields.text("name")
    slug = fields.maybe_text("meter_slug") or re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    if not re.fullmatch("[a-z0-9][a-z0-9_-]{0,99}", slug):
        raise invalid("meter_slug has to be of lower-case letters, digits, hyphens and underscores.")
    rate, kind = fields.choice("rate_type", RateType), fields.choice("tier_type", TierType)
    record = StoredMeter(new_id("met_"), slug, name, ask.now, rate, kind, _tiers(fields))
    if slug in ask.world.meters:
        raise conflict("meter_slug_taken", f"There is a meter with the slug {slug!r} already.")
    ask.world.meters[slug] = record
    return created(shapes.meter(record, old=ask.old))


def _tiers(fields: Fields) -> tuple[StoredTier, ...]:
    found = [StoredTier(one.number("start"), one.money("rate")) for one in fields.each("tiers")]
    if not found:
        raise invalid("tiers has to have at least one tier.")
    return tuple(sorted(found, key=lambda tier: tier.start))


def find(world: World, name: str) -> StoredMeter:
    """The meter with this id; raises ``Refused`` (404)."""
    record = world.meters.by_id(name)
    if record is None:
        raise missing("meter", name)
    return record


def retrieve(ask: Ask) -> EmulatedReply:
    """``GET meters/{id}``"""
    return json_reply(shapes.meter(find(ask.world, ask.name), old=ask.old))


def update(ask: Ask) -> EmulatedReply:
    """``PATCH meters/{id}``: name and tiers; the slug stays."""
    record, fields = find(ask.world, ask.name), ask.fields
    name, tiers = fields.maybe_text("name"), _tiers(fields) if fields.given("tiers") else record.tiers
    record.name, record.tiers = name or record.name, tiers
    return json_reply(shapes.meter(record, old=ask.old))


def delete(ask: Ask) -> EmulatedReply:
    """``DELETE meters/{id}``: the slug is unknown to the gateway at once."""
    record = find(ask.world, ask.name)
    del ask.world.meters[record.meter_slug]
    return deleted(record.meter_id)
