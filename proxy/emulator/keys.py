"""Keys of the account API: secret keys, spend keys, and the wallet keys of SDK 9 and 10. A key's value is told once."""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from proxy.emulator import shapes
from proxy.emulator.asking import Ask, Fields, created, deleted, missing, success
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import Cycle, IssuedKey, Limit, Shape, StoredSpendKey, new_id

if TYPE_CHECKING:
    from proxy.emulator.state import World

Status = Literal["active", "paused"]


def fresh(prefix: str) -> str:
    """A new key value."""
    return prefix + secrets.token_hex(16)


# Secret keys ---


def secret_keys(ask: Ask) -> EmulatedReply:
    """``GET secret_keys``"""
    return ask.page(ask.world.secret_keys(), lambda one: one.key_id, shapes.secret_key)


def issue_secret_key(world: World, name: str) -> IssuedKey:
    """A new secret key of the world's own environment."""
    prefix = "aks_test_" if world.secret_key.startswith("aks_test_") else "aks_live_"
    record = IssuedKey(new_id("key_"), name, fresh(prefix), world.clock())
    world.secret_key_records.append(record)
    return record


def create_secret_key(ask: Ask) -> EmulatedReply:
    """``POST secret_keys``"""
    record = issue_secret_key(ask.world, ask.fields.text("name"))
    return created({**shapes.secret_key(record), "secret_key": record.key})


def delete_secret_key(ask: Ask) -> EmulatedReply:
    """``DELETE secret_keys/{id}``: the key is dead at once, at the gateway too; also the one that asks for it."""
    for record in ask.world.secret_keys():
        if record.key_id == ask.name:
            ask.world.revoked_keys.add(record.key)
            return deleted(record.key_id)
    raise missing("secret_key", ask.name)


# Spend keys ---


def _known(ask: Ask) -> StoredSpendKey:
    for record in ask.world.spend_key_records:
        if record.spend_key_id == ask.name and record.key not in ask.world.revoked_keys:
            return record
    raise missing("spend_key", ask.name)


def spend_keys(ask: Ask) -> EmulatedReply:
    """``GET spend_keys``"""
    found = [one for one in ask.world.spend_key_records if one.key not in ask.world.revoked_keys]
    return ask.page(found, lambda one: one.spend_key_id, lambda one: shapes.spend_key(ask.world, one))


def spend_key(ask: Ask) -> EmulatedReply:
    """``GET spend_keys/{id}``"""
    return json_reply(shapes.spend_key(ask.world, _known(ask)))


def create_spend_key(ask: Ask) -> EmulatedReply:
    """``POST spend_keys``: openai is the shape unless another is asked for."""
    fields = ask.fields
    record = StoredSpendKey(fields.text("name"), fresh("lava_sk_"), "openai", created_at=ask.now)
    _fill(record, fields)
    ask.world.spend_key_records.append(record)
    return created(_told(ask, record))


def _told(ask: Ask, record: StoredSpendKey) -> dict[str, Any]:
    return {**shapes.spend_key(ask.world, record), "key": record.key}


def update_spend_key(ask: Ask) -> EmulatedReply:
    """``PUT spend_keys/{id}``: what is not named stays, null takes a limit away."""
    record = _known(ask)
    _fill(record, ask.fields)
    return json_reply(shapes.spend_key(ask.world, record))


def _fill(record: StoredSpendKey, fields: Fields) -> None:
    # Read all before changing any: a refused change leaves the record as it was.
    changes: dict[str, Any] = {}
    if "name" in fields:
        changes["name"] = fields.text("name")
    if "status" in fields:
        changes["status"] = fields.choice("status", Status)
    if "request_shape" in fields:
        changes["shape"] = fields.choice("request_shape", Shape)
    for name in ("allowed_models", "allowed_providers"):
        if name in fields:
            changes[name] = tuple(fields.texts(name)) if fields.given(name) else None
    if "spend_limit" in fields:
        limit = fields.within("spend_limit") if fields.given("spend_limit") else None
        changes["spend_limit"] = limit and limit.money("amount")
        changes["spend_cycle"] = limit.choice("cycle", Cycle) if limit else "total"
    if "request_limit" in fields:
        limit = fields.within("request_limit") if fields.given("request_limit") else None
        changes["request_limit"] = limit and Limit(Decimal(limit.whole("count", 1)), limit.choice("cycle", Cycle))
    if "rate_limit" in fields:
        limit = fields.within("rate_limit") if fields.given("rate_limit") else None
        changes["rpm"] = limit and limit.whole("rpm", 1)
        changes["burst"] = limit.whole("burst", 1) if limit and limit.given("burst") else None
        changes["allowance"] = None
    if "expires_at" in fields:
        changes["expires_at"] = fields.instant("expires_at") if fields.given("expires_at") else None
    for name, value in changes.items():
        setattr(record, name, value)


def revoke_spend_key(ask: Ask) -> EmulatedReply:
    """``DELETE spend_keys/{id}``"""
    ask.world.revoked_keys.add(_known(ask).key)
    return success()


def rotate_spend_key(ask: Ask) -> EmulatedReply:
    """``POST spend_keys/{id}/rotate``: another value, the same limits and counts; the old value is dead at once."""
    record = _known(ask)
    ask.world.revoked_keys.add(record.key)
    record.key = fresh("lava_sk_")
    return json_reply(_told(ask, record))


# Wallet keys ---


def wallet_keys(ask: Ask) -> EmulatedReply:
    """``GET wallet_keys``"""
    found = [one for one in ask.world.wallet_key_records if one.key not in ask.world.revoked_keys]
    return ask.page(found, lambda one: one.key_id, lambda one: shapes.wallet_key(ask.world, one))


def issue_wallet_key(world: World, name: str) -> IssuedKey:
    """A new wallet key."""
    record = IssuedKey(new_id("wk_"), name, fresh("lava_wk_"), world.clock())
    world.wallet_key_records.append(record)
    return record


def _known_wallet_key(ask: Ask) -> IssuedKey:
    for record in ask.world.wallet_key_records:
        if record.key_id == ask.name and record.key not in ask.world.revoked_keys:
            return record
    raise missing("wallet_key", ask.name)


def revoke_wallet_key(ask: Ask) -> EmulatedReply:
    """``DELETE wallet_keys/{id}``"""
    ask.world.revoked_keys.add(_known_wallet_key(ask).key)
    return success()


def rotate_wallet_key(ask: Ask) -> EmulatedReply:
    """``POST wallet_keys/{id}/rotate``"""
    record = _known_wallet_key(ask)
    ask.world.revoked_keys.add(record.key)
    record.key = fresh("lava_wk_")
    return json_reply({**shapes.wallet_key(ask.world, record), "key": record.key})
