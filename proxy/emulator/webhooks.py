"""Webhooks of the account API, and their deliveries: signed, in the background, and only on this
machine.

The body is Lava's documented form, ``{"event": "customer.created", "data": {"customer": {...}}}``.
The signature is in ``X-Webhook-Signature`` (hex HMAC-SHA256 of the raw body);
``Behaviour.webhook_scheme`` has two older schemes. Each address gets one event at a time, in order,
once: whether Lava retries is not documented.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from proxy.emulator import shapes
from proxy.emulator.account_call import AccountCall, created, deleted, find, invalid
from proxy.emulator.exchange import EmulatedReply, compact, json_reply
from proxy.emulator.records import StoredWebhook, WebhookDelivery, new_id, new_key

if TYPE_CHECKING:
    from proxy.emulator.account_call import Fields
    from proxy.emulator.records import StoredConnection
    from proxy.emulator.state import World

TIMEOUT_SECONDS = 5.0


def listed(call: AccountCall) -> EmulatedReply:
    return call.page(call.world.account.webhooks.values(), lambda one: one.webhook_id, shapes.webhook)


def create(call: AccountCall) -> EmulatedReply:
    """Create a webhook; only this response has the secret."""
    fields = call.fields
    record = StoredWebhook(new_id("wh_"), fields.text("name"), _url(fields), new_key("whsec_"), call.now)
    call.world.account.webhooks[record.webhook_id] = record
    return created({**shapes.webhook(record), "webhook_secret": record.webhook_secret})


def _url(fields: Fields) -> str:
    url = fields.text("url")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not re.fullmatch("[!-~]+", url):
        raise invalid("url has to be an http or https URL.")
    return url


def retrieve(call: AccountCall) -> EmulatedReply:
    return json_reply(shapes.webhook(_find(call)))


def _find(call: AccountCall) -> StoredWebhook:
    return find(call.world.account.webhooks, "webhook", call.name)


def update(call: AccountCall) -> EmulatedReply:
    record, fields = _find(call), call.fields
    name = fields.text("name") if "name" in fields else record.name
    url = _url(fields) if "url" in fields else record.url
    record.name, record.url = name, url
    return json_reply(shapes.webhook(record))


def delete(call: AccountCall) -> EmulatedReply:
    del call.world.account.webhooks[_find(call).webhook_id]
    return deleted(call.name)


# Deliveries ---


def send_event(world: World, what: str, customer: StoredConnection) -> None:
    """Send ``what`` ("created", "wallet.balance.updated", "deleted") of a customer to every
    webhook.

    Returns at once; must be called in the emulator's event loop. The results are in
    ``History.deliveries``.
    """
    if not world.account.webhooks:
        return
    old = world.behaviour.generation == 8
    event = f"{'connection' if old else 'customer'}.{what}"
    data = {"connection" if old else "customer": shapes.customer(world, customer, old=old, credits=True)}
    body = compact({"event": event, "data": data})
    tasks = world.pending.webhook_tasks
    for webhook in world.account.webhooks.values():
        delivery = WebhookDelivery(webhook.webhook_id, webhook.url, event, body, _signature(world, webhook, body))
        world.history.deliveries.append(delivery)
        task = asyncio.create_task(_deliver(world, delivery, tasks.get(webhook.webhook_id)))
        tasks[webhook.webhook_id] = task
        task.add_done_callback(partial(_forget, tasks, webhook.webhook_id))
    del world.history.deliveries[: -world.behaviour.keep]


def _forget(tasks: dict[str, asyncio.Task[None]], webhook_id: str, task: asyncio.Task[None]) -> None:
    if tasks.get(webhook_id) is task:
        del tasks[webhook_id]


def _signature(world: World, webhook: StoredWebhook, body: bytes) -> tuple[str, str]:
    """Return the signature header of the configured scheme."""

    def signed(text: bytes) -> str:
        return hmac.new(webhook.webhook_secret.encode(), text, hashlib.sha256).hexdigest()

    match world.behaviour.webhook_scheme:
        case "current":
            return "X-Webhook-Signature", signed(body)
        case "2025":
            return "x-lava-signature", signed(body)
        case "flex":
            stamp = str(int(world.clock()))
            return "x-lava-signature", f"t={stamp},v1={signed(stamp.encode() + b'.' + body)}"


async def _deliver(world: World, delivery: WebhookDelivery, previous: asyncio.Task[None] | None) -> None:
    try:
        if previous is not None:
            await asyncio.wait((previous,))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            delivery.status = await _post(delivery)
    except TimeoutError:
        delivery.error = f"no answer within {TIMEOUT_SECONDS:g} s"
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        delivery.error = str(error) or type(error).__name__
    finally:
        if not delivery.over:
            delivery.error = "the emulator ended"
        world.history.touch()


def _target(url: str) -> tuple[SplitResult, str, int]:
    """Return the parts of a webhook's address, its host and port; raise ``ValueError`` unless it is
    http on this machine.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http":
        raise ValueError("not delivered: the emulator supports http only")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError("not delivered: the emulator calls no other machine")
    return parts, host, parts.port or 80


async def _post(delivery: WebhookDelivery) -> int:
    """Send it and return the status of the response; raise ``OSError`` or ``ValueError``."""
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
            raise ValueError("the receiver's response is not HTTP")
        return int(words[1])
    finally:
        writer.close()
