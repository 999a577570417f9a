"""Sends a reply over a connection, with the faults of its plan, and notices when the client leaves.

Two tasks run for every response: one sends, one waits for a disconnect in ``receive``. Only the
second notices that a client left while nothing is sent (a stall, a long delay); it sets
``ReceivedRequest.cancelled``.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

    from proxy.emulator.exchange import EmulatedReply, FaultPlan
    from proxy.emulator.state import History, ReceivedRequest

CONNECTION = "lava_emulator.connection"
"""Key in the ASGI scope's extensions of the ``ClientConnection`` that ``server.py`` adds."""


class ClientConnection(Protocol):
    """What a fault needs of the connection, and the request head as it was written."""

    target: bytes
    headers: list[tuple[bytes, bytes]]

    def close(self) -> None:
        """Send what was written, then close."""

    def abort(self) -> None:
        """Close at once; drop what is not sent yet."""


class ConnectionCutError(Exception):
    """The plan closes the connection here."""


async def read_body(receive: Receive, received: ReceivedRequest, limit: int) -> bool:
    """Collect the request body; return ``False`` when it is larger than ``limit`` or the client left."""
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


async def respond(
    history: History,
    pace: float,
    received: ReceivedRequest,
    reply: EmulatedReply,
    receive: Receive,
    send: Send,
    connection: ClientConnection | None,
) -> None:
    """Send ``reply``; return when it is sent, the client left, or the plan closed the connection."""
    sending = asyncio.ensure_future(_send(history, pace, received, reply, send))
    disconnect = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((sending, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            received.cancelled, received.finished = True, False
            return
        if isinstance(sending.exception(), ConnectionCutError):
            received.cut = True
            history.touch()
            await _cut(connection, disconnect)
            return
        sending.result()
    finally:
        sending.cancel()
        disconnect.cancel()
        await asyncio.gather(sending, disconnect, return_exceptions=True)
        history.touch()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cut(connection: ClientConnection | None, disconnect: asyncio.Future[None]) -> None:
    if connection is None:
        # Under another server, only an exception breaks off a response; that server logs it.
        raise ConnectionCutError
    connection.close()
    # A client that does not read would keep the close waiting behind unsent bytes.
    await asyncio.wait((disconnect,), timeout=5.0)
    connection.abort()


async def _send(history: History, pace: float, received: ReceivedRequest, reply: EmulatedReply, send: Send) -> None:
    plan = reply.plan
    if plan.delay:
        await asyncio.sleep(plan.delay)
    if plan.no_answer:
        raise ConnectionCutError
    received.status = reply.status
    history.touch()
    bodiless = reply.status in (204, 304)
    await send(_head(received, reply, bodiless=bodiless))
    if bodiless:
        received.finished = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    chunks, interrupted = _planned_chunks(reply)
    if not interrupted:
        # The end is sent with the last bytes: a client that has read them finds ``finished`` set.
        *chunks, last = chunks or [b""]
    for chunk in chunks:
        for part in _parts(chunk, plan):
            received.sent += part
            await send({"type": "http.response.body", "body": part, "more_body": True})
            if plan.drip:
                # One turn of the loop, so that each byte is a write of its own.
                await asyncio.sleep(0)
        history.touch()
        if pace and reply.streamed:
            await asyncio.sleep(pace)
    if interrupted and plan.stall_after is not None:
        await asyncio.Event().wait()
    if interrupted:
        # uvloop writes at the end of a turn of its loop.
        await asyncio.sleep(0)
        raise ConnectionCutError
    *parts, end = _parts(last, plan)
    for part in parts:
        received.sent += part
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0)
    received.sent += end
    received.finished = True
    await send({"type": "http.response.body", "body": end, "more_body": False})


def _parts(chunk: bytes, plan: FaultPlan) -> list[bytes]:
    return [chunk[at : at + 1] for at in range(len(chunk))] if plan.drip and chunk else [chunk]


def _head(received: ReceivedRequest, reply: EmulatedReply, *, bodiless: bool) -> Message:
    headers: list[tuple[str, str]] = []
    if reply.content_type:
        headers.append(("content-type", reply.content_type))
    if not reply.streamed and not bodiless:
        headers.append(("content-length", str(sum(map(len, reply.chunks)))))
    if not reply.from_edge:
        headers.append(("x-lava-request-id", received.request_id))
    headers += [*reply.headers, *reply.plan.headers]
    raw = [
        (name.encode(), re.sub(r"[\0-\x1f\x7f]", "?", value).encode("latin-1", "replace")) for name, value in headers
    ]
    return {"type": "http.response.start", "status": reply.status, "headers": raw}


def _planned_chunks(reply: EmulatedReply) -> tuple[list[bytes], bool]:
    """Return the chunks to send, and whether the response stops or the connection closes after them."""
    plan, chunks = reply.plan, list(reply.chunks)
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
