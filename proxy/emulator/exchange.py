"""What the players exchange with the gateway: a ``EmulatedCall`` goes in, a ``EmulatedReply`` comes out, and nothing is sent
yet.

A reply keeps its events apart instead of joining them, so that the faults can cut between two events or
inside one, and so that the translation of the rewrite address can go event by event.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from proxy.emulator.records import Consumption

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.emulator.bodies import Part
    from proxy.emulator.state import ReceivedRequest, World
    from proxy.protocol.dialects import Dialect


@dataclass(frozen=True, slots=True)
class Cost:
    """The provider's price of an answer in dollars, and what was used for it."""

    amount: Decimal = Decimal(0)
    used: Consumption = field(default_factory=Consumption)


FREE = Cost()

FLAT_COST = Cost(Decimal("0.001"))
"""Of a call that counts nothing (an image)."""


@dataclass(slots=True)
class EmulatedCall:
    """One request as a provider sees it. ``rest`` is the path below the provider's base address, without a
    leading slash.

    ``document`` is the decoded JSON body (``None`` when there is none), ``form`` the parts of a multipart
    body.
    """

    world: World
    received: ReceivedRequest
    method: str
    rest: str
    query: dict[str, str]
    dialect: Dialect
    document: Any = None
    form: list[Part] = field(default_factory=list)

    @property
    def model(self) -> str:
        return self.received.model or "unnamed"


@dataclass(slots=True)
class EmulatedReply:
    """An answer not yet sent.

    ``chunks`` are the events of a stream, or the single body of a plain answer. ``marker`` are the positions
    in ``chunks`` of the stream's end marker and ``error_event`` is how this dialect reports an error inside a
    stream: both are what the faults need. ``cost`` is what it costs at the provider.
    """

    status: int
    chunks: list[bytes]
    content_type: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    streamed: bool = False
    marker: frozenset[int] = frozenset()
    error_event: bytes = b""
    cost: Cost = FREE
    from_edge: bool = False  # made by something in front of Lava, which knows no request id


def token_cost(input_tokens: int, output_tokens: int) -> Cost:
    """The price of tokens; one price for every model keeps a demonstration readable."""
    amount = Decimal("0.000001") * input_tokens + Decimal("0.000004") * output_tokens
    return Cost(amount, Consumption(input_tokens, output_tokens))


def compact(value: object) -> bytes:
    """``value`` as compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def json_reply(value: object, status: int = 200, cost: Cost = FREE) -> EmulatedReply:
    """A plain JSON answer."""
    return EmulatedReply(status, [compact(value)], "application/json", cost=cost)


def data_event(value: object) -> bytes:
    """An SSE event without a name, as OpenAI and Google send them."""
    return b"data: " + compact(value) + b"\n\n"


def named_event(value: dict[str, Any]) -> bytes:
    """An SSE event named after its own ``type``, as Anthropic and OpenAI's responses send them."""
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + compact(value) + b"\n\n"


def event_stream(events: Iterable[bytes], *, marker: int, error_event: bytes, cost: Cost) -> EmulatedReply:
    """A streamed answer whose last ``marker`` events are its end marker."""
    chunks = list(events)
    ends = frozenset(range(len(chunks) - marker, len(chunks)))
    reply = EmulatedReply(200, chunks, "text/event-stream; charset=utf-8", streamed=True, marker=ends)
    reply.headers.append(("cache-control", "no-cache"))
    reply.error_event = error_event
    reply.cost = cost
    return reply


def lava_error(status: int, code: str, message: str) -> EmulatedReply:
    """An error of Lava's own, in the envelope of its reference."""
    return json_reply({"error": {"message": message, "code": code, "status": status}}, status)


# What the players say ---


def said(text: str) -> str:
    """The deterministic answer to ``text``."""
    return f"You said: {text}" if text else "You said nothing."


def pieces(text: str, limit: int = 64) -> list[str]:
    """``text`` cut into words for streaming, joined into at most ``limit`` pieces; joining them gives
    ``text`` back.
    """
    words = re.findall(r"\s*\S+\s*?(?=\s|$)|\s+", text) or [text]
    size = -(-len(words) // limit)
    return ["".join(words[at : at + size]) for at in range(0, len(words), size)]


def count_tokens(text: str) -> int:
    """A plausible number of tokens: a quarter of the characters, at least one."""
    return max(1, -(-len(text) // 4))


def plain_text(content: Any) -> str:
    """The text of a message's content in any dialect: a string, or a list of parts that have a ``text``."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        found = [
            part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | dict)
        ]
        return " ".join(text for text in found if isinstance(text, str))
    return ""


def last_text(messages: Any, role: str = "user", content: str = "content") -> str:
    """The text of the last message of ``role``; ``content`` names the member that holds it."""
    if isinstance(messages, str):
        return messages
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role", role) == role:
            text = plain_text(message.get(content))
            if text:
                return text
    return ""
