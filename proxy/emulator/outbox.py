"""Webhook delivery: events go to the registered addresses, signed, in the background, and only on this machine.

What is sent is Lava's documented form: ``{"event": "customer.created", "data": {"customer": {...}}}`` with the signature in
``X-Webhook-Signature`` (hex HMAC-SHA256 of the raw body); ``World.webhook_scheme`` has the two older ones. Each address
gets one event at a time, in order, once: whether and when Lava tries again is not documented.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from proxy.emulator import shapes
from proxy.emulator.exchange import compact
from proxy.emulator.records import Delivery

if TYPE_CHECKING:
    from proxy.emulator.records import StoredConnection, StoredWebhook
    from proxy.emulator.state import World

LIMIT_S = 5.0
"""How long a receiver may take."""


def announce(world: World, what: str, customer: StoredConnection) -> None:
    """Tell every webhook that ``what`` ("created", "wallet.balance.updated", "deleted") happened to a customer.

    Returns at once; has to be called in the emulator's event loop. The outcome is in ``World.deliveries``.
    """
    if not world.webhooks:
        return
    old = world.generation == 8
    event = f"{'connection' if old else 'customer'}.{what}"
    data = {"connection" if old else "customer": shapes.customer(world, customer, old=old, credits=True)}
    body = compact({"event": event, "data": data})
    for webhook in list(world.webhooks.values()):
        delivery = Delivery(webhook.webhook_id, webhook.url, event, body, _signature(world, webhook, body))
        world.deliveries.append(delivery)
        before = world.mail.get(webhook.webhook_id)
        task = asyncio.get_running_loop().create_task(_deliver(world, delivery, before))
        world.mail[webhook.webhook_id] = task
        task.add_done_callback(partial(_forget, world, webhook.webhook_id))
    del world.deliveries[: -world.keep]


def _forget(world: World, webhook_id: str, task: asyncio.Task[None]) -> None:
    if world.mail.get(webhook_id) is task:
        del world.mail[webhook_id]


def _signature(world: World, webhook: StoredWebhook, body: bytes) -> tuple[str, str]:
    """The header of the world's era."""

    def signed(text: bytes) -> str:
        return hmac.new(webhook.webhook_secret.encode(), text, hashlib.sha256).hexdigest()

    match world.webhook_scheme:
        case "current":
            return "X-Webhook-Signature", signed(body)
        case "2025":
            return "x-lava-signature", signed(body)
        case "flex":
            stamp = str(int(world.clock()))
            return "x-lava-signature", f"t={stamp},v1={signed(stamp.encode() + b'.' + body)}"


async def _deliver(world: World, delivery: Delivery, before: asyncio.Task[None] | None) -> None:
    try:
        if before is not None:
            await asyncio.wait((before,))
        async with asyncio.timeout(LIMIT_S):
            delivery.status = await _post(delivery)
    except TimeoutError:
        delivery.error = f"no answer within {LIMIT_S:g} s"
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as fault:
        delivery.error = str(fault) or type(fault).__name__
    finally:
        if not delivery.over:
            delivery.error = "the emulator ended"
        world.touch()


def _target(url: str) -> tuple[SplitResult, str, int]:
    """The parts of a webhook's address, its host and port; raises ``ValueError`` unless it is http on this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http":
        raise ValueError("not delivered: the emulator speaks http only")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError("not delivered: the emulator calls no other machine")
    return parts, host, parts.port or 80


async def _post(delivery: Delivery) -> int:
    """Send it; the status of the answer. Raises ``OSError`` and ``ValueError``."""
    parts, host, port = _target(delivery.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    reader, writer = await asyncio.open_connection(host, port)
    try:
        lines = [
            f"POST {target} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Content-Type: application/json",
            "User-Agent: lava-emulator-webhooks",
            ": ".join(delivery.signature),
            f"Content-Length: {len(delivery.body)}",
            "Connection: close",
        ]
        writer.write("\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + delivery.body)
        await writer.drain()
        words = (await reader.readuntil(b"\n")).split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
            raise ValueError("the receiver does not answer in HTTP")
        return int(words[1])
    finally:
        writer.close()
