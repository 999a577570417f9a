"""The config snapshot: one configuration with everything that can be computed before the first request.

A request keeps the snapshot it started with. A reload makes a new one and swaps it in. Local keys are stored as hashes.
Credentials are made once per project and provider, and stored.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy.gateway.access import digest
from proxy.gateway.active_request import Deadlines
from proxy.gateway.destinations import diagnosis
from proxy.gateway.destinations.account_probe import AccountProbe
from proxy.gateway.destinations.lava import LavaDestination
from proxy.gateway.routing import RoutingTable
from proxy.lava import prefixes, tokens
from proxy.protocol.redaction import Redactor, Secret
from proxy.upstream import Engine, Origin, pool_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.config.settings import Project, Settings
    from proxy.gateway.destinations import Destination
    from proxy.gateway.destinations.diagnosis import Subject
    from proxy.lava.tokens import Credential
    from proxy.protocol.errors import ProxyError

_SHARE_PERCENT = 80
"""Share of ``max_concurrent`` for each of several projects without a limit of its own, so that one cannot block the others."""


@dataclass(frozen=True, slots=True)
class LavaAddress:
    """The address of Lava for one project. ``base_path`` begins with a slash and does not end with one.

    The connections of ``origin`` are for questions to the account API, those of ``ActiveConfig.origin`` for requests.
    """

    origin: Origin
    host: bytes
    base_path: bytes


class ActiveConfig:
    """A config snapshot."""

    def __init__(self, settings: Settings, engine: Engine, inquiries: AccountProbe | None = None) -> None:
        self.settings = settings
        self.engine = engine
        self.table = RoutingTable.of(settings)
        self.deadlines = Deadlines(
            settings.upstream.first_byte,
            settings.upstream.idle,
            settings.upstream.total,
            settings.upstream.write_stall,
        )
        self.allowed_hosts = frozenset(host.lower().encode("ascii") for host in settings.server.allowed_hosts)
        self.allowed_origins = frozenset(
            origin.lower().encode("ascii") for origin in settings.server.allowed_origins if not origin.endswith("://*")
        )
        self.allowed_schemes = tuple(
            origin[:-1].lower().encode("ascii") for origin in settings.server.allowed_origins if origin.endswith("://*")
        )
        self.own_hosts: dict[int, frozenset[bytes]] = {}
        self.keys: dict[bytes, str | None] = {}
        for key in settings.server.keys:
            self.keys[digest(key.reveal().encode("utf-8"))] = None
        for name, project in settings.projects.items():
            for key in project.keys:
                self.keys[digest(key.reveal().encode("utf-8"))] = name
        self.max_body_bytes = settings.server.max_body_bytes
        whole = self.max_concurrent_in_all = settings.server.max_concurrent
        most = whole if len(self.table.projects) == 1 else max(1, whole * _SHARE_PERCENT // 100)
        self.max_concurrent = {name: project.max_concurrent or most for name, project in self.table.projects.items()}
        """The limit on active requests, by project."""
        self.account_key: Secret | None = settings.lava.secret_key
        self.destination: Destination = LavaDestination(self)
        self.inquiries = inquiries or AccountProbe()
        self._lava: dict[str, LavaAddress] = {}
        self._credentials: dict[tuple[str, str], Credential] = {}
        self._origins: dict[Origin, Origin] = {}
        self._redactors: dict[tuple[str, str], Redactor] = {}
        self._of_all: Redactor | None = None
        self.masking = asyncio.Lock()
        """Held while a large error response is masked in a thread."""

    def project(self, name: str) -> Project:
        """Return the settings of a project that routing has chosen."""
        return self.table.projects[name]

    def lava(self, project_name: str) -> LavaAddress:
        """Return the address of Lava for this project."""
        found = self._lava.get(project_name)
        if found is None:
            found = self._lava[project_name] = self._find_lava(project_name, self.project(project_name))
        return found

    def _find_lava(self, name: str, project: Project) -> LavaAddress:
        base = self.settings.lava.base_url
        secret = project.forward_token or project.spend_key or project.secret_key or self.account_key
        credential = secret.reveal() if secret is not None else ""
        if base == "auto":
            base = tokens.base_url_for(credential)
        parts = urlsplit(base)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.netloc.rpartition("@")[2].encode("ascii")
        origin = Origin(parts.scheme, parts.hostname or "", port, pool_key(name, credential.encode("utf-8")))
        return LavaAddress(origin, host, parts.path.rstrip("/").encode("ascii"))

    def credential(self, project_name: str, provider: str, client_key: str | None) -> Credential:
        """Return the credential to send. See ``tokens.credential`` for the errors it raises."""
        key = (project_name, provider)
        kept = self._credentials.get(key)
        if kept is not None:
            return kept
        project = self.project(project_name)
        made = tokens.credential(project_name, project, provider, self.account_key, client_key)
        if not made.payment.byok_from_client:  # the tool's own key must not be stored
            self._credentials[key] = made
        return made

    def redactor(self, credential: Credential) -> Redactor:
        """Return a redactor for the values of this credential."""
        if credential.payment.byok_from_client:
            return Redactor(credential.secrets)
        key = (credential.payment.project, credential.payment.provider)
        found = self._redactors.get(key)
        if found is None:
            found = self._redactors[key] = Redactor(credential.secrets)
        return found

    def redactor_of_all(self) -> Redactor:
        """Return a redactor for every secret of this configuration, for our own messages."""
        if self._of_all is None:
            self._of_all = Redactor(self.settings.secrets())
        return self._of_all

    def subject(self, project_name: str) -> Subject:
        """Return what a project sends to Lava, for questions to Lava's account API."""
        lava = self.lava(project_name)
        base_url = f"{lava.origin.scheme}://{lava.host.decode('ascii')}{lava.base_path.decode('ascii')}"
        return diagnosis.subject_of(project_name, self.project(project_name), self.account_key, base_url)

    async def explain(self, fault: ProxyError, project_name: str, provider: str | None = None) -> None:
        """Add to ``fault`` which part is wrong: a key with a wrong prefix, or what Lava's account says about a 401 or 402."""
        if prefixes.explain(fault, project_name, self.project(project_name), self.account_key, provider or ""):
            return
        if not (self.settings.lava.diagnose and diagnosis.wanted(fault)):
            return
        subject = self.subject(project_name)
        if subject.silent is None:
            found = await self.inquiries.about(subject, self.lava(project_name), self.engine)
            if found is not None:
                diagnosis.explain(fault, subject, *found, self.mask_of(subject))

    def mask_of(self, subject: Subject) -> Callable[[str], str]:
        """Return a mask for every secret of this configuration and the subject's key, which only its token may contain."""
        own, all_ = Redactor([subject.key.reveal()] if subject.key is not None else []), self.redactor_of_all()
        return lambda text: all_.text(own.text(text))

    def origin(self, credential: Credential) -> Origin:
        """Return the origin for requests with this credential. Each credential has its own connections."""
        payment = credential.payment
        lava = self.lava(payment.project).origin
        origin = Origin(lava.scheme, lava.host, lava.port, pool_key(payment.project, credential.authorization))
        if payment.byok_from_client:
            return origin
        return self._origins.setdefault(origin, origin)  # the engine finds the pool of an identical object faster

    def usable(self) -> str | None:
        """Return why requests of the default project cannot be served, or ``None`` if they can."""
        name = self.table.default_project
        return self.destination.unusable([name] if name is not None else self.table.projects)
