"""The state of a world as a document, for an emulator that continues where an earlier one stopped.

Kept are keys, account, records of requests and the objects at providers. Behaviour, histories and
pending work are not.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Literal

import msgspec

from proxy.emulator.state import Account, Billing, Keys, ProviderObjects, World

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_SECONDS = 1.0


class StateFileError(Exception):
    """The document is not an emulator's state, or damaged; the text says where, and contains no value of it."""


class _Merchant(msgspec.Struct, forbid_unknown_fields=True):
    keys: Keys
    account: Account
    objects: ProviderObjects
    billing: Billing


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    lava_proxy_emulator: Literal[2]
    """The version of this form. A document of another program does not have it."""
    live: _Merchant
    sandbox: _Merchant | None = None


def encode(world: World) -> bytes:
    """Return the state of ``world`` and its sandbox as JSON."""
    return msgspec.json.encode(_Document(2, _of(world), _of(world.sandbox) if world.sandbox else None))


def decode(data: bytes) -> World:
    """Return the world of a document; raise ``StateFileError``."""
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateFileError(str(error)) from None
    live = _world(document.live)
    if document.sandbox is not None:
        live.share_with(_world(document.sandbox))
    return live


def _of(world: World) -> _Merchant:
    return _Merchant(world.keys, world.account, world.objects, world.billing)


def _world(merchant: _Merchant) -> World:
    world = World(merchant.keys, merchant.account, merchant.objects, merchant.billing)
    # References become one object again: a change of a plan or meter must reach every subscription and record.
    account = world.account
    for subscription in account.subscriptions.values():
        subscription.plan = account.plans.get(subscription.plan.plan_id, subscription.plan)
    for record in world.billing.records.values():
        if record.meter is not None:
            record.meter = account.meter_by_id(record.meter.meter_id) or record.meter
    return world


async def keep(world: World, write: Callable[[bytes], None], stop: asyncio.Event) -> None:
    """Give every state of ``world`` to ``write``, at most once a second; after ``stop`` the last one."""
    written = -1
    while True:
        stopping = stop.is_set()
        if world.history.changes != written:
            written = world.history.changes
            await asyncio.to_thread(write, encode(world))
        if stopping:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), INTERVAL_SECONDS)
