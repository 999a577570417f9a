"""Lava as a destination: its addresses, credential, payer and error shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from proxy.gateway.access import key_of
from proxy.gateway.destinations import ModelsQuery, diagnosis
from proxy.gateway.template import Prepared
from proxy.lava import prefixes, tokens
from proxy.protocol import errors, headers
from proxy.protocol.errors import Payment, ProxyError
from proxy.protocol.redaction import Redactor
from proxy.protocol.tasks import in_task
from proxy.upstream import Origin, UpstreamRequest, pool_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.config.settings import Project
    from proxy.gateway.active_config import ActiveConfig
    from proxy.gateway.destinations.diagnosis import Subject
    from proxy.gateway.routing import Target
    from proxy.gateway.template import Template
    from proxy.lava.tokens import Credential
    from proxy.protocol.headers import Pairs

ANTHROPIC_VERSION: Final = (b"anthropic-version", b"2023-06-01")
"""Added for Anthropic's API if the client sent none: Anthropic refuses requests without it."""

_ID_AND_END: Final = headers.ID_PLACEHOLDER.encode("ascii") + headers.AFTER_ID
_IDENTITY: Final = (b"accept-encoding", b"identity")


@dataclass(frozen=True, slots=True)
class LavaAddress:
    """The address of Lava for one project. ``base_path`` begins with a slash and does not end with one.

    The connections of ``origin`` are for questions to the account API, those of a request are its credential's own.
    """

    origin: Origin
    host: bytes
    base_path: bytes


class LavaDestination:
    """Lava's gateway, for one configuration."""

    name: Final = "Lava"
    provider: Final = "lava"
    address_setting: Final = "lava.base_url"
    docs: Final = "https://www.lava.so/docs"

    def __init__(self, config: ActiveConfig) -> None:
        self._config = config
        self._addresses: dict[str, LavaAddress] = {}
        self._credentials: dict[tuple[str, str], Credential] = {}
        self._origins: dict[Origin, Origin] = {}

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
        credential = self.credential(route.project, route.provider.name, self._client_key(template, route))
        address = self.address(route.project)
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
            template.method.encode("ascii"), self._origin(credential), address.base_path + b"/" + route.target, pairs
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
        address, spends = self.address(project), settings.spend_key is not None
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
        """Add which part is wrong: a key with a wrong prefix, or what the account says about a 401 or 402."""
        config = self._config
        if prefixes.explain(fault, project, config.project(project), config.account_key, provider or ""):
            return
        if not (config.settings.lava.diagnose and diagnosis.wanted(fault)):
            return
        subject = self.subject(project)
        if subject.silent is None:
            found = await in_task(config.inquiries.about(subject, self.address(project), config.engine))
            if found is not None:
                diagnosis.explain(fault, subject, *found, self.mask_of(subject))

    def address(self, project_name: str) -> LavaAddress:
        """Return the address for this project."""
        found = self._addresses.get(project_name)
        if found is None:
            found = self._addresses[project_name] = self._find_address(project_name, self._config.project(project_name))
        return found

    def _find_address(self, name: str, project: Project) -> LavaAddress:
        base = self._config.settings.lava.base_url
        secret = project.forward_token or project.spend_key or project.secret_key or self._config.account_key
        credential = secret.reveal() if secret is not None else ""
        if base == "auto":
            base = tokens.base_url_for(credential)
        parts = urlsplit(base)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.netloc.rpartition("@")[2].encode("ascii")
        origin = Origin(parts.scheme, parts.hostname or "", port, pool_key(name, credential.encode("utf-8")))
        return LavaAddress(origin, host, parts.path.rstrip("/").encode("ascii"))

    def credential(self, project_name: str, provider: str, client_key: str | None) -> Credential:
        """Return the credential to send, made once per project and provider. See ``tokens.credential`` for the errors it raises."""
        key = (project_name, provider)
        kept = self._credentials.get(key)
        if kept is not None:
            return kept
        project = self._config.project(project_name)
        made = tokens.credential(project_name, project, provider, self._config.account_key, client_key)
        if not made.payment.byok_from_client:  # the tool's own key must not be stored
            self._credentials[key] = made
        return made

    def subject(self, project_name: str) -> Subject:
        """Return what a project sends to Lava, for questions to Lava's account API."""
        address = self.address(project_name)
        base_url = f"{address.origin.scheme}://{address.host.decode('ascii')}{address.base_path.decode('ascii')}"
        return diagnosis.subject_of(
            project_name, self._config.project(project_name), self._config.account_key, base_url
        )

    def mask_of(self, subject: Subject) -> Callable[[str], str]:
        """Return a mask for every secret of this configuration and the subject's key, which only its token may contain."""
        own, all_ = Redactor([subject.key.reveal()] if subject.key is not None else []), self._config.redactor_of_all()
        return lambda text: all_.text(own.text(text))

    def _origin(self, credential: Credential) -> Origin:
        """Return the origin for requests with this credential. Each credential has its own connections."""
        payment = credential.payment
        base = self.address(payment.project).origin
        origin = Origin(base.scheme, base.host, base.port, pool_key(payment.project, credential.authorization))
        if payment.byok_from_client:
            return origin
        return self._origins.setdefault(origin, origin)  # the engine finds the pool of an identical object faster

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
