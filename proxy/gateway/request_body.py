"""The body of a request: collected only if its ``model`` decides the target.

Theory of the memory. A collected body is stored in the chunks in which it arrived, and all of them count against one budget.
Each chunk is released when it is written upstream, and the rest is released with the request. Nothing references the body
while the response is awaited and relayed.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

from proxy.gateway.active_request import Phase
from proxy.protocol import body as bodies
from proxy.protocol.errors import ProxyError
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterable, Iterator

    from proxy.gateway.active_request import ActiveRequest
    from proxy.gateway.template import Template
    from proxy.protocol.headers import RequestHeaders
    from proxy.upstream import Body

MIN_BUDGET_BYTES: Final = 256 * 1024 * 1024
"""The budget of all collected bodies together; twice ``max_body_bytes`` if that is more."""

ONE_PIECE_BYTES: Final = 64 * 1024
"""A body up to this size is sent in one write. A larger one is sent, and released, chunk by chunk."""

_SEARCHED = 64 * 1024
# A name inside a text has a backslash before its closing quote, so it is no match.
_OUTPUT_LIMIT = re.compile(
    rb'"(?:max_tokens|max_completion_tokens|max_output_tokens|max_tokens_to_sample|maxOutputTokens)"\s*:\s*(\d{1,9})'
)
_CHOICES = re.compile(rb'"(?:n|best_of|candidateCount)"\s*:\s*(\d{1,3})')
_Found = TypeVar("_Found")
_HAS_BODY = frozenset({"POST", "PUT", "PATCH"})


class BodyBudget:
    """The bytes of all collected bodies, and the order in which bodies are searched."""

    __slots__ = ("held", "searching")

    def __init__(self) -> None:
        self.held = 0
        self.searching = asyncio.Lock()


class RequestBody:
    """A request body: collected chunks, or a stream. Collected bytes count until they are taken or closed."""

    __slots__ = ("_budget", "_content", "_counted", "_pieces", "collected", "length", "size", "streams", "whole")

    def __init__(self, budget: BodyBudget) -> None:
        self.collected = False
        self.size = 0
        """The size of a collected body, including what was already taken."""
        self.whole: bytes | None = None
        """A collected body that arrived in one chunk. It does not count: the connection buffers as much anyway."""
        self.length: int | None = None
        """The length of the sent body, if the engine cannot know it."""
        self.streams = False
        """Whether it is sent in chunks, each with a wait of its own."""
        self._budget = budget
        self._content: Body = None
        self._counted = 0
        self._pieces: deque[bytes] = deque()

    def add(self, piece: bytes) -> None:
        """Collect the next chunk."""
        self._pieces.append(piece)
        self.size += len(piece)
        self._count(len(piece))

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the collected chunks without taking them."""
        return iter(self._pieces if self.whole is None else (self.whole,))

    def taken(self) -> Iterator[bytes]:
        """Yield the collected chunks for sending. Each is released here, and counts until the next one is requested."""
        whole, self.whole = self.whole, None
        if whole is not None:
            yield whole
        while self._pieces:
            size = len(self._pieces[0])
            yield self._pieces.popleft()
            if self._counted:
                self._count(-size)

    def send(self, content: Body, length: int | None = None) -> None:
        """Set what is sent. A collected body is released now if it is sent in one write."""
        self._content, self.length = content, length
        if isinstance(content, bytes):
            self._give_up()
        else:
            self.streams = True

    def send_pieces(self, active: ActiveRequest, pieces: Iterator[bytes], size: int) -> None:
        """Set the ``pieces`` of a collected body to be sent, ``size`` bytes in total."""
        if max(size, self.size) <= ONE_PIECE_BYTES:
            self.send(b"".join(pieces))
        else:
            self.send(_one_by_one(active, pieces), size)

    def take(self) -> Body:
        """Return what the engine sends. No reference to it is kept."""
        content, self._content = self._content, None
        return content

    def close(self) -> None:
        """Release the rest. May be called twice."""
        self._content = None
        self._give_up()

    def output_limit(self) -> tuple[int | None, int]:
        """Return the client's limit of the output in tokens (``None`` if none is found), and how many choices it asks for.

        Only the first and the last 64 KiB of a collected body are searched, by pattern.
        """
        if isinstance(self._content, bytes):
            pieces = [self._content]
        elif self.collected:
            pieces = list(self)
        else:
            return None, 1
        ends = b"".join(_first(pieces, _SEARCHED)) + b"\n"
        if sum(map(len, pieces)) > _SEARCHED:
            last = [
                piece[::-1] for piece in _first([piece[-_SEARCHED:][::-1] for piece in reversed(pieces)], _SEARCHED)
            ]
            ends += b"".join(reversed(last))
        limits = [int(found[1]) for found in _OUTPUT_LIMIT.finditer(ends)]
        choices = [int(found[1]) for found in _CHOICES.finditer(ends)]
        return max(limits, default=None), max([1, *choices])

    async def search(self, received: RequestHeaders, limit: int) -> bodies.BodyModel:
        """Return the model of a collected body that is large or not plain JSON."""
        noted = received.noted
        return await self._searched(
            bodies.search(self, noted.get(b"content-type"), noted.get(b"content-encoding"), limit)
        )

    async def search_usage_option(self, received: RequestHeaders, limit: int) -> bodies.Edit | None:
        """Return the change of a collected body after which its stream has the usage, if one is needed."""
        noted = received.noted
        return await self._searched(
            bodies.search_usage_option(self, noted.get(b"content-type"), noted.get(b"content-encoding"), limit)
        )

    async def _searched(self, steps: Generator[None, None, _Found]) -> _Found:
        """Take the steps of a search and return what it found.

        All searches together take one step per turn of the loop. No search waits for the end of another, and no other
        request waits for more than one step.
        """
        while True:
            async with self._budget.searching:
                try:
                    next(steps)
                except StopIteration as over:
                    found: _Found = over.value
                    return found
                await asyncio.sleep(0)

    def _give_up(self) -> None:
        self.whole = None
        if self._counted:
            self._pieces.clear()
            self._count(-self._counted)

    def _count(self, size: int) -> None:
        self._counted += size
        self._budget.held += size


async def read(active: ActiveRequest, template: Template) -> RequestBody:
    """Return the body of ``active``: collected if its ``model`` decides, else as a stream. Raises ``ProxyError``."""
    exchange, length = active.exchange, active.exchange.head.length
    limit = active.config.max_body_bytes
    if length is not None and length > limit:
        raise _too_large(limit)
    body = active.body = RequestBody(active.bodies)
    if template.reads_body and (template.method in _HAS_BODY or length != 0):
        whole = body.whole = exchange.whole_body()
        if whole is None:
            await _collect(active, body, limit)
        else:
            body.size = len(whole)
            if body.size > limit:
                raise _too_large(limit)
        body.collected = True
        active.record.bytes_in = body.size
    elif length != 0:
        whole = exchange.whole_body()
        if whole is None:
            body.send(_as_it_comes(active, await exchange.read(), limit), length)
        else:
            if len(whole) > limit:  # possible only for a chunked body
                raise _too_large(limit)
            active.record.bytes_in = len(whole)
            body.send(whole)
    elif template.method in _HAS_BODY or b"content-length" in template.received.noted:
        body.send(b"")
    return body


async def _collect(active: ActiveRequest, body: RequestBody, limit: int) -> None:
    """Collect the whole body, within ``max_body_bytes`` and the budget of all requests together."""
    budget = active.bodies
    while piece := await active.exchange.read():
        body.add(piece)
        if body.size > limit:
            raise _too_large(limit)
        if budget.held > max(MIN_BUDGET_BYTES, 2 * limit):
            raise ProxyError(
                "overloaded",
                "Too many large requests are being read at once.",
                "Try again in a moment, or use an address that names its provider: those are not collected.",
                headers=[(b"retry-after", b"1")],
            )


async def _as_it_comes(active: ActiveRequest, piece: bytes, limit: int) -> AsyncIterator[bytes]:
    """Yield the chunks of a streamed body. The engine requests the next one when the upstream has accepted the last."""
    size = 0
    while piece:
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        active.record.bytes_in = size
        if active.response is None:
            active.wait(Phase.UPLOAD)
        yield piece
        if active.response is None:
            active.wait(Phase.CLIENT)
        piece = await active.exchange.read()
    if active.response is None:
        active.wait(Phase.HEAD)


async def _one_by_one(active: ActiveRequest, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks of a collected body. The engine requests the next one when the upstream has accepted the last."""
    for piece in pieces:
        if piece:
            if active.response is None:
                active.wait(Phase.UPLOAD)
            yield piece
        await asyncio.sleep(0)  # the next chunk may have to be decoded
    if active.response is None:
        active.wait(Phase.HEAD)


def _first(pieces: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Yield the first ``most`` bytes of ``pieces``."""
    for piece in pieces:
        yield piece[:most]
        most -= len(piece)
        if most <= 0:
            return


def _too_large(limit: int) -> ProxyError:
    return ProxyError(
        "body_too_large",
        f"The request body is larger than {counted(limit, 'byte')}.",
        "Send less, or raise max_body_bytes under [server].",
        # The rest of the body must not be read as the next request.
        headers=[(b"connection", b"close")],
    )
