"""Keys of the account API: secret keys, spend keys, and the wallet keys of SDK 9 and 10.

Only the response to a creation or rotation has a key's value.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from proxy.emulator import shapes
from proxy.emulator.account_call import AccountCall, Fields, created, deleted, missing, success
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import Cycle, IssuedKey, Limit, Shape, StoredSpendKey, new_id, new_key

if TYPE_CHECKING:
    from proxy.emulator.state import World

Status = Literal["active", "paused"]


# Secret keys ---


def secret_keys(call: AccountCall) -> EmulatedReply:
    return call.page(call.world.secret_keys(), lambda one: one.key_id, shapes.secret_key)


def issue_secret_key(world: World, name: str) -> IssuedKey:
    """Create a secret key of the world's own environment."""
    prefix = "aks_test_" if world.secret_key.startswith("aks_test_") else "aks_live_"
    record = IssuedKey(new_id("key_"), name, new_key(prefix), world.clock())
    world.keys.secret_key_records.append(record)
    return record


def create_secret_key(call: AccountCall) -> EmulatedReply:
    record = issue_secret_key(call.world, call.fields.text("name"))
    return created({**shapes.secret_key(record), "secret_key": record.key})


def delete_secret_key(call: AccountCall) -> EmulatedReply:
    """Revoke a secret key, at the gateway too; it may be the caller's own."""
    for record in call.world.secret_keys():
        if record.key_id == call.name:
            call.world.keys.revoked_keys.add(record.key)
            return deleted(record.key_id)
    raise missing("secret_key", call.name)


# Spend keys ---


def _known(call: AccountCall) -> StoredSpendKey:
    for record in call.world.keys.spend_key_records:
        if record.spend_key_id == call.name and record.key not in call.world.keys.revoked_keys:
            return record
    raise missing("spend_key", call.name)


def spend_keys(call: AccountCall) -> EmulatedReply:
    found = [one for one in call.world.keys.spend_key_records if one.key not in call.world.keys.revoked_keys]
    return call.page(found, lambda one: one.spend_key_id, lambda one: shapes.spend_key(call.world, one))


def spend_key(call: AccountCall) -> EmulatedReply:
    return json_reply(shapes.spend_key(call.world, _known(call)))


def create_spend_key(call: AccountCall) -> EmulatedReply:
    fields = call.fields
    record = StoredSpendKey(fields.text("name"), new_key("lava_sk_"), "openai", created_at=call.now)
    _fill(record, fields)
    call.world.keys.spend_key_records.append(record)
    return created(_with_key(call, record))


def _with_key(call: AccountCall, record: StoredSpendKey) -> dict[str, Any]:
    return {**shapes.spend_key(call.world, record), "key": record.key}


def update_spend_key(call: AccountCall) -> EmulatedReply:
    """Change a spend key; null removes a limit."""
    record = _known(call)
    _fill(record, call.fields)
    return json_reply(shapes.spend_key(call.world, record))


def _fill(record: StoredSpendKey, fields: Fields) -> None:
    # Read every field first: a refused change must not change the record.
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


def revoke_spend_key(call: AccountCall) -> EmulatedReply:
    call.world.keys.revoked_keys.add(_known(call).key)
    return success()


def rotate_spend_key(call: AccountCall) -> EmulatedReply:
    """Replace the value; limits and counts stay."""
    record = _known(call)
    call.world.keys.revoked_keys.add(record.key)
    record.key = new_key("lava_sk_")
    return json_reply(_with_key(call, record))


# Wallet keys ---


def wallet_keys(call: AccountCall) -> EmulatedReply:
    found = [one for one in call.world.keys.wallet_key_records if one.key not in call.world.keys.revoked_keys]
    return call.page(found, lambda one: one.key_id, lambda one: shapes.wallet_key(call.world, one))


def issue_wallet_key(world: World, name: str) -> IssuedKey:
    record = IssuedKey(new_id("wk_"), name, new_key("lava_wk_"), world.clock())
    world.keys.wallet_key_records.append(record)
    return record


def _known_wallet_key(call: AccountCall) -> IssuedKey:
    for record in call.world.keys.wallet_key_records:
        if record.key_id == call.name and record.key not in call.world.keys.revoked_keys:
            return record
    raise missing("wallet_key", call.name)


def revoke_wallet_key(call: AccountCall) -> EmulatedReply:
    call.world.keys.revoked_keys.add(_known_wallet_key(call).key)
    return success()


def rotate_wallet_key(call: AccountCall) -> EmulatedReply:
    record = _known_wallet_key(call)
    call.world.keys.revoked_keys.add(record.key)
    record.key = new_key("lava_wk_")
    return json_reply({**shapes.wallet_key(call.world, record), "key": record.key})
