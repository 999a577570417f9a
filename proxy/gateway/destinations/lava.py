"""Lava as a destination: its addresses, credential, payer and error shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.gateway.access import key_of
from proxy.gateway.destinations import ModelsQuery
from proxy.gateway.template import Prepared
from proxy.lava import tokens
from proxy.protocol import errors, headers
from proxy.protocol.errors import Payment, ProxyError
from proxy.protocol.tasks import in_task
from proxy.upstream import UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.gateway.active_config import ActiveConfig
    from proxy.gateway.routing import Target
    from proxy.gateway.template import Template
    from proxy.protocol.headers import Pairs

ANTHROPIC_VERSION: Final = (b"anthropic-version", b"2023-06-01")
"""Added for Anthropic's API if the client sent none: Anthropic refuses requests without it."""

_ID_AND_END: Final = headers.ID_PLACEHOLDER.encode("ascii") + headers.AFTER_ID
_IDENTITY: Final = (b"accept-encoding", b"identity")


class LavaDestination:
    """Lava's gateway, for one configuration."""

    name: Final = "Lava"
    provider: Final = "lava"
    address_setting: Final = "lava.base_url"
    docs: Final = "https://www.lava.so/docs"

    def __init__(self, config: ActiveConfig) -> None:
        self._config = config

    def unusable(self, projects: Iterable[str]) -> str | None:
        config = self._config
        for name in projects:
            project = config.project(name)
            if project.forward_token or project.spend_key or project.secret_key or config.account_key:
                return None
        return "no Lava secret key is configured: set LAVA_SECRET_KEY, or secret_key under [lava], or run `lava-proxy login`"

    def prepare(
        self, template: Template, route: Target, *, decoded: bool = False, hides_usage: bool = False
    ) -> Prepared:
        config, received = self._config, template.received
        credential = config.credential(route.project, route.provider.name, self._client_key(template, route))
        address = config.lava(route.project)
        kept: tuple[bytes, ...] = () if credential.payment.byok else headers.ACCOUNTS
        if decoded:
            kept += (b"content-encoding",)
        if hides_usage:
            kept += (b"accept-encoding",)
        pairs: Pairs = [(b"host", address.host), (b"authorization", credential.authorization)]
        pairs += headers.without(received.onward, *kept)
        if hides_usage:
            pairs.append(_IDENTITY)
        if route.wants_anthropic_version and ANTHROPIC_VERSION[0] not in received.noted:
            pairs.append(ANTHROPIC_VERSION)
        metadata = headers.merge_metadata(
            received.noted.get(headers.METADATA),
            received.metadata,
            config.project(route.project).metadata,
            correlate=config.correlate,
        )
        if metadata is not None:
            pairs.append((headers.METADATA, metadata))  # last: the request's id is put at its end
        outgoing = UpstreamRequest(
            template.method.encode("ascii"), config.origin(credential), address.base_path + b"/" + route.target, pairs
        )
        if metadata is not None and metadata.endswith(_ID_AND_END):
            outgoing.after_id = headers.AFTER_ID
        response_headers = [
            (b"x-lava-proxy-project", route.project.encode("ascii")),
            (b"x-lava-proxy-provider", route.provider.name.encode("ascii")),
        ]
        if route.hint is not None:
            response_headers.append((b"x-lava-proxy-hint", route.hint.encode("ascii")))
        return Prepared(route, self, credential, outgoing, response_headers)

    def models_query(self, project: str) -> ModelsQuery:
        config, settings = self._config, self._config.project(project)
        address, spends = config.lava(project), settings.spend_key is not None
        secret = settings.spend_key
        if secret is None and settings.forward_token is None:  # a ready token is for forwarding only
            secret = settings.secret_key or config.account_key
        sent: Pairs = [(b"host", address.host), (b"accept", b"application/json")]
        if secret is not None:
            sent.append((b"authorization", b"Bearer " + secret.reveal().encode("utf-8")))
        payment = Payment(
            project,
            self.provider,
            "spend_key" if spends else "merchant",
            "spend key" if spends else "secret key",
            secret.hint if secret is not None else "",
        )
        outgoing = UpstreamRequest(b"GET", address.origin, address.base_path + b"/models", sent)
        return ModelsQuery(outgoing, secret, payment)

    def classify(
        self, prepared: Prepared, status: int, headers: Pairs, body: bytes, request_id: str | None
    ) -> ProxyError | None:
        payment = prepared.credential.payment
        return errors.from_answer(status, headers, body, payment, lava_request_id=request_id)

    def succeeded(self, project: str) -> None:
        inquiries = self._config.inquiries
        if inquiries.known:
            inquiries.forget(project)

    async def explain(self, fault: ProxyError, project: str, provider: str | None) -> None:
        await in_task(self._config.explain(fault, project, provider))

    def _client_key(self, template: Template, route: Target) -> str | None:
        """Return the provider key that the tool sent, if the project's settings say to use it."""
        config = self._config
        if not tokens.needs_client_key(config.project(route.project), route.provider.name):
            return None
        sent = key_of(
            template.received,
            template.path,
            config,
            but=template.caller.key_header,
            method=template.method,
            query=template.query,
        )
        if sent is None:
            return None
        key = sent[1].decode("utf-8", "replace")
        # A space means another scheme than Bearer, or two words in a key header. One of them may be a local key.
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ProxyError(
                "bad_request",
                "The provider key of this request has characters that no key has.",
                "Send the key alone in its header, or as `Authorization: Bearer <key>`.",
            )
        return key
