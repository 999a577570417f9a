"""What the emulated gateway and the emulated providers exchange: an ``EmulatedCall`` in, an
``EmulatedReply`` out.

A reply is not sent yet. It keeps its events apart, so that a fault can cut between two events or
inside one, and so that the rewrite address can translate event by event.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from proxy.emulator.records import Consumption

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.emulator.biller import RecordOutcome
    from proxy.emulator.bodies import FormPart
    from proxy.emulator.google_files import Upload
    from proxy.emulator.state import ProviderObjects, ReceivedRequest, World
    from proxy.protocol.dialects import Dialect


@dataclass(frozen=True, slots=True)
class Cost:
    """What a response used, and a price beside that of its tokens, in dollars."""

    amount: Decimal = Decimal(0)
    used: Consumption = field(default_factory=Consumption)


FREE = Cost()

FLAT_COST = Cost(Decimal("0.001"))
"""For a call without tokens (an image)."""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """How a reply is sent. The defaults mean: without a fault."""

    delay: float = 0.0
    cut_after: int | None = None
    cut_inside: int | None = None
    stall_after: int | None = None
    no_answer: bool = False
    no_end: bool = False
    inband_error: bool = False
    drip: bool = False
    record: RecordOutcome | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def merged(self, other: FaultPlan) -> FaultPlan:
        """Return both plans in one; ``other`` wins."""
        given = {row.name: getattr(other, row.name) for row in fields(self) if getattr(other, row.name) != row.default}
        return replace(self, **given)


@dataclass(slots=True)
class EmulatedCall:
    """One request as a provider sees it.

    ``rest`` is the path below the provider's base address, without a leading slash. ``document`` is
    the decoded JSON body, ``form`` the parts of a multipart body. ``objects`` and ``uploads`` are
    what the provider stores.
    """

    received: ReceivedRequest
    method: str
    rest: str
    query: dict[str, str]
    dialect: Dialect
    objects: ProviderObjects
    uploads: dict[str, Upload]
    now: float
    document: Any = None
    form: list[FormPart] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        world: World,
        received: ReceivedRequest,
        dialect: Dialect,
        rest: str = "",
        query: dict[str, str] | None = None,
    ) -> EmulatedCall:
        objects, uploads = world.objects, world.pending.uploads
        return cls(received, received.method, rest, query or {}, dialect, objects, uploads, world.clock())

    @property
    def model(self) -> str:
        return self.received.model or "unnamed"


@dataclass(slots=True)
class EmulatedReply:
    """A response not yet sent.

    ``chunks`` are the events of a stream, or the single body. ``marker`` are the positions in
    ``chunks`` of the stream's end marker and ``error_event`` is the dialect's error inside a
    stream: the faults need both. ``cost`` is the provider's price. ``from_edge``: sent by a proxy
    in front of Lava, which knows no request id.
    """

    status: int
    chunks: list[bytes]
    content_type: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    streamed: bool = False
    marker: frozenset[int] = frozenset()
    error_event: bytes = b""
    cost: Cost = FREE
    from_edge: bool = False
    plan: FaultPlan = field(default_factory=FaultPlan)


class RequestRefusedError(Exception):
    """The request goes no further; ``reply`` says why."""

    def __init__(self, reply: EmulatedReply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def token_cost(input_tokens: int, output_tokens: int, cached: int = 0, cache_write: int = 0) -> Cost:
    """Return the cost of tokens; ``input_tokens`` includes the cached and the cache-written ones."""
    used = Consumption(input_tokens, output_tokens, cached_input_tokens=cached, cache_write_tokens=cache_write)
    return Cost(used=used)


def compact(value: object) -> bytes:
    """Return ``value`` as compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def json_reply(value: object, status: int = 200, cost: Cost = FREE) -> EmulatedReply:
    return EmulatedReply(status, [compact(value)], "application/json", cost=cost)


def data_event(value: object) -> bytes:
    """Return an SSE event without a name, as OpenAI and Google send them."""
    return b"data: " + compact(value) + b"\n\n"


def named_event(value: dict[str, Any]) -> bytes:
    """Return an SSE event named by its ``type``, as Anthropic and OpenAI's responses send them."""
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + compact(value) + b"\n\n"


def event_stream(events: Iterable[bytes], *, marker: int, error_event: bytes, cost: Cost) -> EmulatedReply:
    """Return a streamed reply whose last ``marker`` events are its end marker."""
    chunks = list(events)
    ends = frozenset(range(len(chunks) - marker, len(chunks)))
    reply = EmulatedReply(200, chunks, "text/event-stream; charset=utf-8", streamed=True, marker=ends)
    reply.headers.append(("cache-control", "no-cache"))
    reply.error_event = error_event
    reply.cost = cost
    return reply


def lava_error(status: int, code: str, message: str) -> EmulatedReply:
    """Return an error of Lava itself, in the form of its reference."""
    return json_reply({"error": {"message": message, "code": code, "status": status}}, status)


def refusal(status: int, code: str, message: str, *headers: tuple[str, str]) -> RequestRefusedError:
    """Return a Lava error to be raised."""
    reply = lava_error(status, code, message)
    reply.headers += headers
    return RequestRefusedError(reply)


def reply_text(text: str) -> str:
    """Return the deterministic answer to ``text``."""
    return f"You said: {text}" if text else "You said nothing."


def pieces(text: str, limit: int = 64) -> list[str]:
    """Split ``text`` at words into at most ``limit`` pieces for streaming."""
    words = re.findall(r"\s*\S+\s*?(?=\s|$)|\s+", text) or [text]
    size = -(-len(words) // limit)
    return ["".join(words[at : at + size]) for at in range(0, len(words), size)]


def count_tokens(text: str) -> int:
    """Return a plausible number of tokens: a quarter of the characters, at least one."""
    return max(1, -(-len(text) // 4))


def plain_text(content: Any) -> str:
    """Return the text of a message's content in any dialect: a string, or a list of parts with ``text``."""
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
    """Return the text of the last message of ``role``; ``content`` names the member that holds it."""
    if isinstance(messages, str):
        return messages
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role", role) == role:
            text = plain_text(message.get(content))
            if text:
                return text
    return ""
