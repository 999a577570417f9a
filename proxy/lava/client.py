"""``Lava``: the account API and the gateway, as an async client."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from proxy.lava import records
from proxy.lava.errors import LavaError, MissingKey, NotJson, UnusableKey
from proxy.lava.gateway import GatewayStream, outgoing, target_of, token_of
from proxy.lava.methods import Resources
from proxy.lava.paging import Pages
from proxy.lava.replies import ApiReply, document, read, refusal
from proxy.lava.resources import UnknownName, resolve, rows
from proxy.lava.retrying import Patience
from proxy.lava.tokens import PRODUCTION, base_url_for, mint_token
from proxy.lava.transport import Transport
from proxy.lava.wire import UNSET, USER_AGENT, ApiCall, write
from proxy.protocol.providers import ALIASES, BUILTIN
from proxy.protocol.redaction import Redactor, Secret
from proxy.protocol.urls import lava_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Protocol, Unpack

    from proxy.lava.gateway import Format, Options
    from proxy.lava.resources import Action
    from proxy.lava.tokens import Option
    from proxy.lava.wire import Unset

    class ApiSender(Protocol):
        """Sends one account call (as ``Transport.send``)."""

        async def send(
            self, method: str, target: str, headers: dict[str, str], body: bytes | None, limit: float
        ) -> ApiReply: ...


R = TypeVar("R", bound=records.ApiRecord)

_KEY = re.compile(r"[\x21-\x7e]+")


class Lava(Resources):
    """One account at Lava.

    ``secret_key`` is the merchant's key, by default that of the environment's ``LAVA_SECRET_KEY``; a spend key works for
    what Lava permits it. ``base_url`` is ``auto`` (the sandbox for ``aks_test_`` keys, as the SDK does) or an address, to
    which ``/v1`` is added if it has no path. ``timeout`` is in seconds, for one try of an account call.

    GETs, and POSTs by their ``Idempotency-Key``, are retried ``retries`` times after a broken connection, 429 or 5xx,
    unless Lava asks for a wait above ``max_wait`` seconds.
    Lava's reference says that every POST supports that header; ``idempotency=False`` neither sends nor trusts it.

    ``ca_file`` names further trusted certificates, ``proxy`` is an outbound proxy's URL; no proxy variable is read.
    ``sender`` sends the account calls instead of the client's own connections.

    Use it in ``async with``, or ``aclose()`` it. Raises ``MissingKey``, and ``ValueError`` for an invalid address or key.
    The resources (``lava.customers``, ``lava.meters`` …) are in ``methods``; what they raise is in ``errors``.
    """

    def __init__(
        self,
        secret_key: str | Secret | None = None,
        *,
        base_url: str = "auto",
        timeout: float = 30.0,
        retries: int = 2,
        backoff: float = 0.5,
        max_wait: float = 20.0,
        idempotency: bool = True,
        ca_file: str = "",
        proxy: str = "",
        sender: ApiSender | None = None,
    ) -> None:
        super().__init__(self)
        key = secret_key.reveal() if isinstance(secret_key, Secret) else secret_key or os.environ.get("LAVA_SECRET_KEY")
        if not key:
            raise MissingKey("no Lava secret key: give one to Lava(), or set the environment variable LAVA_SECRET_KEY")
        self._key = Secret(key)
        self.base_url: str = base_url_for(key) if base_url == "auto" else _normal(base_url)
        self.providers = Providers(self.base_url)
        self._timeout = timeout
        self._patience = Patience(retries, backoff, max_wait)
        self._idempotency = idempotency
        self._transport = Transport(self.base_url, ca_file=ca_file, proxy=proxy)
        self._sender: ApiSender = sender or self._transport

    def __repr__(self) -> str:
        return f"<Lava {self._key.hint} at {self.base_url}>"

    async def __aenter__(self) -> Lava:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. May be called twice."""
        await self._transport.aclose()

    # Credentials

    def forward_token(
        self,
        *,
        customer_id: Option = UNSET,
        connection_id: Option = UNSET,
        meter_slug: Option = UNSET,
        provider_key: Option = UNSET,
        disable_billing: bool | Unset | None = UNSET,
    ) -> str:
        """Return the forward token for these options, byte for byte as the SDK's ``generateForwardToken``.

        It contains the secret key (base64 is no encryption): treat it like one.
        """
        return mint_token(
            self._key.reveal(),
            connection_id=connection_id,
            customer_id=customer_id,
            meter_slug=meter_slug,
            provider_key=provider_key,
            disable_billing=disable_billing,
        )

    @classmethod
    async def exchange_code(cls, code: str, *, base_url: str = PRODUCTION) -> records.AuthCredentials:
        """Return the credentials for the one-time code of a login. Needs no key."""
        # The action is keyless: this value is not sent.
        async with cls("none", base_url=base_url) as lava:
            return await lava.auth.exchange_code(code=code)

    # The account API by name

    async def call(
        self,
        action: str | Action,
        *ids: str,
        fields: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Call any action of the table by name (``meters.create``, also the SDK's ``subscriptions.createPlan``) or row.

        ``fields`` are its parameters, ``extra_body`` are further members of the body. A list returns its first page.
        Raises ``UnknownName`` with the nearest name, ``ValueError``, ``TypeError``, and ``LavaError``.
        """
        row = rows(action)[0] if isinstance(action, str) else action
        kind: type[records.ApiRecord] = getattr(records, row.record)
        if row.paged:
            return await self.pages(action, fields)
        return await self.record(kind, action, ids, fields or {}, extra_body, idempotency_key)

    def pages(self, action: str | Action, fields: Mapping[str, Any] | None = None) -> Pages[Any]:
        """Return any list of the table by name or row: see ``Pages``."""
        row = rows(action)[0] if isinstance(action, str) else action
        if not row.paged:
            raise ValueError(f"{row.key} is no list")
        return self.pages_of(getattr(records, row.record), action, fields or {})

    def pages_of(self, kind: type[R], action: str | Action, fields: Mapping[str, Any]) -> Pages[R]:
        """Return a list whose records are of this class."""
        given = {name: value for name, value in fields.items() if value is not None}
        # Now, not at the first page, so that a misspelt name raises in the call that contains it.
        row = resolve(action, given) if isinstance(action, str) else action
        write(row, (), given, None)
        return Pages(self, kind, action, fields, lambda: any(param.name == "limit" for param in row.query))

    async def record(
        self,
        kind: type[R],
        action: str | Action,
        ids: tuple[str, ...],
        fields: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        """Call an action and return its answer as this class."""
        row = rows(action)[0] if isinstance(action, str) else action
        call = write(action, ids, fields, extra)
        # Content-Type also without a body, as the SDK does.
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
        }
        if not row.keyless:
            headers["Authorization"] = f"Bearer {self._credential()}"
        repeatable = call.repeatable
        if call.method == "POST" and (self._idempotency or idempotency_key):
            headers["Idempotency-Key"] = idempotency_key or str(uuid.uuid4())
            repeatable = True
        redactor = Redactor([] if row.keyless else [self._key.reveal()])
        tries = 0
        while True:
            try:
                return read(kind, await self._send(call, headers), redactor, time.time())
            except LavaError as exc:
                tries += 1
                wait = self._patience.wait(exc, tries, repeatable, random.random())  # noqa: S311 - spreads retries
                if wait is None:
                    raise
            await asyncio.sleep(wait)

    async def _send(self, call: ApiCall, headers: dict[str, str]) -> ApiReply:
        return await self._sender.send(call.method, call.target, headers, call.body, self._timeout)

    def _credential(self) -> str:
        key = self._key.reveal()
        if not _KEY.fullmatch(key):
            raise UnusableKey("the secret key holds a space, a line end or another character that no key has")
        return key

    # The gateway

    @overload
    async def gateway(self, url: str, *, stream: Literal[False] = False, **options: Unpack[Options]) -> Any: ...
    @overload
    async def gateway(self, url: str, *, stream: Literal[True], **options: Unpack[Options]) -> GatewayStream: ...
    async def gateway(
        self,
        url: str,
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        customer_id: str | None = None,
        connection_id: str | None = None,
        meter_slug: str | None = None,
        provider_key: str | None = None,
        disable_billing: bool | None = None,
        format: Format | None = None,
        stream: bool = False,
        silence: float = 600.0,
    ) -> Any:
        """Call a provider through Lava. ``url`` is the provider's whole address.

        ``body`` is a dict or list (sent as JSON), text or bytes. Without ids the merchant pays; ``meter_slug`` attributes,
        ``customer_id`` (or ``connection_id``) with it charges the customer, unless ``disable_billing`` is set;
        ``provider_key`` is your own key at the provider. ``format`` is the API of the body, if it is not the provider's.
        ``silence`` is how many seconds may pass without a byte.

        Returns the answer's JSON, its numbers as Python's ``json`` reads them; with ``stream`` a ``GatewayStream``.
        Retried only if there was no connection: anything else may cost money twice. Raises ``LavaError``,
        ``ValueError``, ``TypeError``.
        """
        target = target_of(url, format)
        token = token_of(
            self._key.reveal(),
            customer_id=customer_id,
            connection_id=connection_id,
            meter_slug=meter_slug,
            provider_key=provider_key,
            disable_billing=disable_billing,
        )
        sent, content = outgoing(headers, body, token)
        opened = await self._open(method, target, sent, content, silence)
        try:
            if stream and 200 <= opened.status < 300:
                return opened
            reply = ApiReply(opened.status, opened.headers, await opened.read())
        except BaseException:
            await opened.aclose()
            raise
        await opened.aclose()
        if not reply.ok:
            raise refusal(reply, Redactor([token, *([provider_key] if provider_key else [])]), time.time())
        return _json(reply)

    async def _open(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None, silence: float
    ) -> GatewayStream:
        tries = 0
        while True:
            held = self._transport.open(method, target, headers, body, silence=silence)
            try:
                return GatewayStream(await held.__aenter__(), held)
            except LavaError as exc:
                tries += 1
                wait = self._patience.wait(exc, tries, False, random.random())  # noqa: S311 - spreads retries
                if wait is None:
                    raise
            await asyncio.sleep(wait)


def _json(reply: ApiReply) -> Any:
    """Return the JSON of a provider's answer."""
    import json

    about: dict[str, Any] = {"status": reply.status, "request_id": reply.request_id}
    if not reply.body.strip():
        return None
    try:
        document(reply.body)  # strict
        return json.loads(reply.body)
    except ValueError:
        raise NotJson("the provider's answer is not JSON: use stream=True to read it", **about) from None


class Providers(Mapping[str, str]):
    """The address that forwards to each provider, as the SDK's ``lava.providers``; names are attributes or keys.

    Append the provider's path: ``lava.providers.openai + "/chat/completions"``.
    """

    def __init__(self, base_url: str) -> None:
        self._addresses = {name: f"{base_url}/forward?u={each.base_url}" for name, each in BUILTIN.items()}

    def __getattr__(self, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._addresses[name]
        except KeyError:
            raise AttributeError(str(UnknownName("provider", name, self._addresses))) from None

    def __getitem__(self, name: str) -> str:
        return self._addresses[ALIASES.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._addresses]

    def __repr__(self) -> str:
        return f"Providers({', '.join(self._addresses)})"


def _normal(base_url: str) -> str:
    """Return the address without a trailing slash, by the rules of the setting ``lava.base_url``."""
    try:
        return lava_address(base_url)
    except ValueError as exc:
        raise ValueError(f"base_url {exc}") from None
