"""The state of a world as a document, for an emulator that goes on where an earlier one stopped.

What is kept: keys, money, customers, meters, plans, the ledger, and what the providers keep. What is not: the requests that
were received, deliveries and codes on their way, uploads that are not whole, and how the world was told to behave.
"""

from __future__ import annotations

import asyncio
import contextlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from proxy.emulator.records import (
    Entry,
    IssuedKey,
    StoredCheckoutSession,
    StoredConnection,
    StoredMeter,
    StoredPlan,
    StoredSpendKey,
    StoredSubscription,
    StoredWebhook,
)
from proxy.emulator.state import StoredFile, World

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE_S = 1.0
"""Between two looks whether something has changed."""


class NotOurs(Exception):
    """A document that is no state of an emulator, or a damaged one; the text says where, and has no value in it."""


class _Merchant(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of a ``World`` that are kept, by their names there."""

    secret_key: str
    test_key: str
    wallet_balance: Decimal
    wallet_id: str
    merchant_id: str
    account_id: str
    born: float
    numbers: int
    connections: dict[str, StoredConnection]
    meters: dict[str, StoredMeter]
    spend_key_records: list[StoredSpendKey]
    secret_key_records: list[IssuedKey]
    wallet_key_records: list[IssuedKey]
    revoked_keys: set[str]
    rejected_provider_keys: set[str]
    unfunded_provider_keys: set[str]
    plans: dict[str, StoredPlan]
    subscriptions: dict[str, StoredSubscription]
    checkouts: dict[str, StoredCheckoutSession]
    webhooks: dict[str, StoredWebhook]
    fallbacks: list[dict[str, Any]] | None
    ledger: list[Entry]
    files: dict[str, StoredFile]
    batches: dict[str, dict[str, Any]]
    responses: dict[str, dict[str, Any]]
    message_batches: dict[str, dict[str, Any]]
    google_files: dict[str, dict[str, Any]]
    google_caches: dict[str, dict[str, Any]]


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    lava_proxy_emulator: Literal[1]
    """The version of this form, and the mark by which a foreign document is known."""
    live: _Merchant
    sandbox: _Merchant | None = None


def encode(world: World) -> bytes:
    """The state of ``world`` and its sandbox, as JSON."""
    sandbox = None if world.sandbox is None else _kept(world.sandbox)
    return msgspec.json.encode(_Document(1, _kept(world), sandbox))


def decode(data: bytes) -> World:
    """The world of a document; raises ``NotOurs``."""
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotOurs(str(error)) from None
    live = _revived(document.live)
    if document.sandbox is not None:
        live.share_with(_revived(document.sandbox))
    return live


def _kept(world: World) -> _Merchant:
    return _Merchant(**{name: getattr(world, name) for name in _Merchant.__struct_fields__})


def _revived(kept: _Merchant) -> World:
    world = World(**{name: getattr(kept, name) for name in kept.__struct_fields__})
    # One object each, as before: a plan or a meter that is changed changes for whoever is on it.
    for subscription in world.subscriptions.values():
        subscription.plan = world.plans.get(subscription.plan.plan_id, subscription.plan)
    for entry in world.ledger:
        if entry.meter is not None:
            entry.meter = world.meters.by_id(entry.meter.meter_id) or entry.meter
    return world


async def keep(world: World, write: Callable[[bytes], None], stop: asyncio.Event) -> None:
    """Hand every state of ``world`` to ``write``, at most once a second; after ``stop`` the last one."""
    kept = -1
    while True:
        stopping = stop.is_set()
        if world.changes != kept:
            kept = world.changes
            await asyncio.to_thread(write, encode(world))
        if stopping:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), PAUSE_S)
