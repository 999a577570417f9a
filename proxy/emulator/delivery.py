"""Sends a reply over a connection, spoiled as the plan says, and notices when the client goes away.

Two things run at once for every answer: the sending, and a watch on ``receive``. Only that watch can tell
that a client left while nothing is being sent (a stall, a long delay), and it is what sets
``ReceivedRequest.cancelled``.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

    from proxy.emulator.exchange import EmulatedReply
    from proxy.emulator.faults import FaultPlan
    from proxy.emulator.state import ReceivedRequest, World

CONNECTION = "lava_emulator.connection"
"""Key in the ASGI scope's extensions under which the server of ``serving.py`` puts a ``DeliveryConnection``."""


class DeliveryConnection(Protocol):
    """What a fault needs of the connection itself, and the request head as it was written."""

    target: bytes
    headers: list[tuple[bytes, bytes]]

    def close(self) -> None:
        """Send what was written, then close: the client sees an end in the middle of the answer."""

    def abort(self) -> None:
        """Close at once, dropping what was not sent yet."""


class Cut(Exception):
    """The plan says that the connection breaks here."""


async def read_body(receive: Receive, received: ReceivedRequest, limit: int) -> bool:
    """Collect the request body into ``received``; ``False`` when it is larger than ``limit`` or the client
    left.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            received.cancelled = True
            return False
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return False
        if not message.get("more_body", False):
            received.body = b"".join(parts)
            return True


async def deliver(
    world: World,
    received: ReceivedRequest,
    reply: EmulatedReply,
    plan: FaultPlan,
    receive: Receive,
    send: Send,
    connection: DeliveryConnection | None,
) -> None:
    """Send ``reply``; returns when it was sent, when the client left, or when the plan cut the connection."""
    sending = asyncio.ensure_future(_send(world, received, reply, plan, send))
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            received.cancelled, received.finished = True, False
            return
        if isinstance(sending.exception(), Cut):
            received.cut = True
            world.touch()
            await _break(connection, watching)
            return
        sending.result()
    finally:
        sending.cancel()
        watching.cancel()
        await asyncio.gather(sending, watching, return_exceptions=True)
        world.touch()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _break(connection: DeliveryConnection | None, watching: asyncio.Future[None]) -> None:
    if connection is None:
        # Under a foreign server the only way to break an answer is an exception, which that server logs.
        raise Cut
    connection.close()
    # Left alone, a client that does not read would keep the close waiting behind unsent bytes for ever.
    await asyncio.wait((watching,), timeout=5.0)
    connection.abort()


async def _send(world: World, received: ReceivedRequest, reply: EmulatedReply, plan: FaultPlan, send: Send) -> None:
    if plan.delay:
        await asyncio.sleep(plan.delay)
    if plan.no_answer:
        raise Cut
    received.status = reply.status
    world.touch()
    bodiless = reply.status in (204, 304)
    await send(_head(received, reply, plan, bodiless=bodiless))
    if bodiless:
        received.finished = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    chunks, spoiled = _spoil(reply, plan)
    if not spoiled:
        # The end goes out together with the last bytes: who has read those finds ``finished`` set.
        *chunks, last = chunks or [b""]
    for chunk in chunks:
        for part in _parts(chunk, plan):
            received.sent += part
            await send({"type": "http.response.body", "body": part, "more_body": True})
            if plan.drip:
                # Once around the loop, so that each byte is a write of its own.
                await asyncio.sleep(0)
        world.touch()
        if world.pace and reply.streamed:
            await asyncio.sleep(world.pace)
    if spoiled and plan.stall_after is not None:
        await asyncio.Event().wait()
    if spoiled:
        # uvloop writes at the end of a turn of its loop.
        await asyncio.sleep(0)
        raise Cut
    *parts, end = _parts(last, plan)
    for part in parts:
        received.sent += part
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0)
    received.sent += end
    received.finished = True
    await send({"type": "http.response.body", "body": end, "more_body": False})


def _parts(chunk: bytes, plan: FaultPlan) -> list[bytes]:
    """What is written at once: the chunk, or each of its bytes."""
    return [chunk[at : at + 1] for at in range(len(chunk))] if plan.drip and chunk else [chunk]


def _head(received: ReceivedRequest, reply: EmulatedReply, plan: FaultPlan, *, bodiless: bool) -> Message:
    headers: list[tuple[str, str]] = []
    if reply.content_type:
        headers.append(("content-type", reply.content_type))
    if not reply.streamed and not bodiless:
        headers.append(("content-length", str(sum(map(len, reply.chunks)))))
    if not reply.from_edge:
        headers.append(("x-lava-request-id", received.request_id))
    headers += [*reply.headers, *plan.headers]
    raw = [
        (name.encode(), re.sub(r"[\0-\x1f\x7f]", "?", value).encode("latin-1", "replace")) for name, value in headers
    ]
    return {"type": "http.response.start", "status": reply.status, "headers": raw}


def _spoil(reply: EmulatedReply, plan: FaultPlan) -> tuple[list[bytes], bool]:
    """The chunks to send, and whether something happens to the connection after them."""
    chunks = list(reply.chunks)
    if reply.streamed and plan.no_end:
        chunks = [chunk for at, chunk in enumerate(chunks) if at not in reply.marker]
    if reply.streamed and plan.inband_error and reply.error_event:
        chunks = [*chunks[:2], reply.error_event]
    stops = [(plan.cut_after, False), (plan.cut_inside, True), (plan.stall_after, False)]
    for count, inside in stops:
        if count is None:
            continue
        if not reply.streamed:
            body = b"".join(chunks)
            return [body[: len(body) // 2]] if count or inside else [], True
        half = [chunk[: len(chunk) // 2] for chunk in chunks[count : count + 1]] if inside else []
        return chunks[:count] + half, True
    return chunks, False
