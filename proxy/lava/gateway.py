"""A call through Lava's gateway: its target and token, as in ``gateway()`` of SDK 11.2, and streams, which the SDK does
not have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from urllib.parse import quote

from proxy.lava.tokens import mint_token
from proxy.lava.wire import UNSET, USER_AGENT, body_of, component

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from proxy.lava.transport import ApiAnswer

Format = Literal["openai", "anthropic", "google", "bedrock"]
"""The API of the request, if it is not the provider's: Lava translates."""


class Options(TypedDict, total=False):
    """The arguments of ``Lava.gateway()`` other than the address."""

    method: str
    headers: Mapping[str, str] | None
    body: Any
    customer_id: str | None
    connection_id: str | None
    meter_slug: str | None
    provider_key: str | None
    disable_billing: bool | None
    format: Format | None
    silence: float


# Every character that may stand in an address; an escape stays the escape it is.
_URI = "!$%&'()*+,-./:;=?@_~[]"

_FORMATS = ("openai", "anthropic", "google", "bedrock")


def target_of(url: str, format: str | None) -> str:
    """Return the target of a call to the provider's `url`, relative to the base address.

    Plain: ``forward?u=`` and the whole address percent-encoded. With a `format`: ``rewrite/FORMAT/`` and the address, in
    which only the characters are encoded that a request line may not contain. Raises ``ValueError``.
    """
    if not re.match(r"https?://[^/?#\s]", url):
        raise ValueError("the provider's address must begin with https://")
    if format is None:
        return f"forward?u={component(url)}"
    if format not in _FORMATS:
        raise ValueError(f"format is one of {', '.join(_FORMATS)}, not {format!r}")
    whole = url.partition("#")[0]
    if re.search(r"(?:^|[/\\])(?:\.|%2e){1,2}(?:[/\\?]|$)", whole.partition("?")[0], re.IGNORECASE):
        raise ValueError("the provider's address must not hold . and .. segments")
    return f"rewrite/{format}/{quote(whole, safe=_URI)}"


def token_of(
    secret_key: str,
    *,
    customer_id: str | None,
    connection_id: str | None,
    meter_slug: str | None,
    provider_key: str | None,
    disable_billing: bool | None,
) -> str:
    """Return the forward token of a call, with the fields and nulls of the SDK's ``gateway()``.

    Raises ``ValueError`` for a customer or connection without a meter, and for a customer with a connection.
    """
    key = UNSET if provider_key is None else provider_key
    if customer_id is not None and connection_id is not None:
        raise ValueError("customer_id and connection_id are two names of one thing: give one")
    if (customer_id is not None or connection_id is not None) and meter_slug is None:
        raise ValueError("a customer or connection needs meter_slug too; without both the merchant pays")
    if connection_id is not None:
        return mint_token(secret_key, connection_id=connection_id, meter_slug=meter_slug, provider_key=key)
    if customer_id is not None:
        billing = UNSET if disable_billing is None else disable_billing
        return mint_token(
            secret_key, customer_id=customer_id, meter_slug=meter_slug, provider_key=key, disable_billing=billing
        )
    if meter_slug is not None:
        return mint_token(secret_key, customer_id=None, meter_slug=meter_slug, provider_key=key)
    return mint_token(secret_key, provider_key=key)


def outgoing(headers: Mapping[str, str] | None, body: Any, token: str) -> tuple[dict[str, str], bytes | None]:
    """Return the headers and the body to send. A caller's ``Authorization`` is dropped; a dict or a list becomes JSON, with
    ``Content-Type: application/json``; text and bytes are sent as they are."""
    sent = {name: value for name, value in (headers or {}).items() if name.lower() != "authorization"}
    named = {name.lower() for name in sent}
    sent["Authorization"] = f"Bearer {token}"
    if "user-agent" not in named:
        sent["User-Agent"] = USER_AGENT
    if body is None or isinstance(body, bytes):
        return sent, body
    if isinstance(body, (bytearray, memoryview)):
        return sent, bytes(body)
    if isinstance(body, str):
        return sent, body.encode("utf-8")
    if isinstance(body, (Mapping, list, tuple)) and "content-type" not in named:
        sent["Content-Type"] = "application/json"
    return sent, body_of(body)


class GatewayStream:
    """An answer of the gateway, as a stream.

    ``async for chunk in stream`` yields the bytes as they arrive, ``stream.lines()`` the lines of text or SSE; only one of
    the two can be used, once. Use it in ``async with``, or close it: until then the provider may continue to generate.
    ``request_id`` is Lava's; ``headers`` have lower-case names. A broken answer raises ``Interrupted``: the end of the
    iteration is always the end of the answer.
    """

    def __init__(self, answer: ApiAnswer, held: AbstractAsyncContextManager[ApiAnswer]) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.request_id = answer.headers.get("x-lava-request-id")
        self._answer = answer
        self._held: AbstractAsyncContextManager[ApiAnswer] | None = held

    def __repr__(self) -> str:
        return f"<Stream {self.status} {self.request_id or '-'}>"

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._answer.raw()

    async def lines(self) -> AsyncIterator[str]:
        """Yield the lines, decoded, without their ends (LF, CRLF or CR, as in SSE). Empty lines are included: in SSE they
        end an event."""
        line: list[bytes] = []
        after_return = False
        async for chunk in self._answer.plain():
            # The CR may be the end of the chunk before; an LF after it belongs to the same line end.
            data = chunk[1:] if after_return and chunk.startswith(b"\n") else chunk
            after_return = data.endswith(b"\r")
            first, *others = _LINE_END.split(data)
            line.append(first)
            for other in others:
                yield b"".join(line).decode("utf-8", "replace")
                line = [other]
        if last := b"".join(line):
            yield last.decode("utf-8", "replace")

    async def read(self) -> bytes:
        """Return the rest of the body, decoded. At most 64 MiB; read more in chunks."""
        return await self._answer.read()

    async def aclose(self) -> None:
        """Close the stream, and its connection unless everything was read."""
        held, self._held = self._held, None
        if held is not None:
            await held.__aexit__(None, None, None)

    async def __aenter__(self) -> GatewayStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


_LINE_END = re.compile(rb"\r\n|\n|\r")
