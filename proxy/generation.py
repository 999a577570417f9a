"""One configuration, made ready: everything that can be worked out before the first request.

A request keeps the generation it began with; a reload makes a new one beside it and swaps. Local keys are kept as hashes;
credentials are minted once per project and provider, and kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy import diagnosis, prefixes, routing, tokens
from proxy.dialects import Dialect, of_headers
from proxy.errors import Fault
from proxy.flights import Flights, Limits
from proxy.inquiry import Inquiries
from proxy.keeping import Kept
from proxy.redaction import Redactor, Secret, Unshown
from proxy.routing import Place, Route, Table
from proxy.upstream import Engine, Origin, pool_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.diagnosis import Subject
    from proxy.headers import Pairs
    from proxy.settings import Project, Settings
    from proxy.tokens import Credential

_PLANS_BYTES = 4 * 1024 * 1024
_PLACES_BYTES = 1024 * 1024
_LONGEST_ENTRY = 4096
_ENTRY_BYTES = 1024
"""What an entry takes beside its texts, about."""
_SHARE_PERCENT = 80
"""Of ``max_concurrent`` for each of several projects that sets none of its own: one of them must not shut the others out."""


@dataclass(frozen=True, slots=True)
class Lava:
    """Lava as one project reaches it: ``base_path`` begins with a slash and has none at its end.

    The connections of ``origin`` are for questions about the project's account, those of ``Plan.origin`` for its requests.
    """

    origin: Origin
    host: bytes
    base_path: bytes


class Plan(Unshown):
    """A route made ready: where it goes, with which credential, and the headers that are always the same.

    ``head`` begins the request to Lava, ``ours`` is added to every answer, ``metadata`` are the project's own pairs.
    ``kept``: it may serve a later request; not where it holds the tool's own key, which is not ours to keep.
    """

    __slots__ = ("credential", "head", "kept", "metadata", "origin", "ours", "route", "target")

    def __init__(
        self,
        route: Route,
        credential: Credential,
        origin: Origin,
        target: bytes,
        head: Pairs,
        metadata: Mapping[str, str],
        ours: Pairs,
    ) -> None:
        self.route = route
        self.credential = credential
        self.kept = not credential.payment.byok_from_client
        self.origin = origin
        self.target = target
        self.head = head
        self.metadata = metadata
        self.ours = ours


class Generation:
    """A configuration in use."""

    def __init__(self, settings: Settings, engine: Engine, inquiries: Inquiries | None = None) -> None:
        self.settings = settings
        self.engine = engine
        self.table = Table.of(settings)
        self.limits = Limits(
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
        whole = settings.server.max_concurrent
        most = whole if len(self.table.projects) == 1 else max(1, whole * _SHARE_PERCENT // 100)
        self._most = {name: project.max_concurrent or most for name, project in self.table.projects.items()}
        self.account_key: Secret | None = settings.lava.secret_key
        self.in_flight = 0
        self.retired = False
        self.places: Kept[tuple[str, bytes, Dialect], Place] = Kept(_PLACES_BYTES)
        self.plans: Kept[tuple[object, ...], Plan] = Kept(_PLANS_BYTES)
        self.inquiries = inquiries or Inquiries()
        self._lava: dict[str, Lava] = {}
        self._credentials: dict[tuple[str, str], Credential] = {}
        self._origins: dict[Origin, Origin] = {}
        self._redactors: dict[tuple[str, str], Redactor] = {}
        self._of_all: Redactor | None = None

    def project(self, name: str) -> Project:
        """The settings of a project that routing has chosen."""
        return self.table.projects[name]

    def crowded(self, flights: Flights, project_name: str) -> Fault | None:
        """Why no other request of this project may be in flight, or ``None`` where there is room."""
        most = self.settings.server.max_concurrent
        if len(flights) >= most:
            return _overloaded("This daemon has", most, "[server]")
        most = self._most[project_name]
        if flights.of(project_name) >= most:
            return _overloaded(f'Project "{project_name}" has', most, f"[projects.{project_name}]")
        return None

    def lava(self, project_name: str) -> Lava:
        """Where this project reaches Lava."""
        found = self._lava.get(project_name)
        if found is None:
            found = self._lava[project_name] = self._find_lava(project_name, self.project(project_name))
        return found

    def _find_lava(self, name: str, project: Project) -> Lava:
        base = self.settings.lava.base_url
        secret = project.forward_token or project.spend_key or project.secret_key or self.account_key
        credential = secret.reveal() if secret is not None else ""
        if base == "auto":
            base = tokens.base_url_for(credential)
        parts = urlsplit(base)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.netloc.rpartition("@")[2].encode("ascii")
        origin = Origin(parts.scheme, parts.hostname or "", port, pool_key(name, credential.encode("utf-8")))
        return Lava(origin, host, parts.path.rstrip("/").encode("ascii"))

    def credential(self, project_name: str, provider: str, client_key: str | None) -> Credential:
        """The credential to send; see ``tokens.credential`` for the faults it raises."""
        key = (project_name, provider)
        kept = self._credentials.get(key)
        if kept is not None:
            return kept
        project = self.project(project_name)
        made = tokens.credential(project_name, project, provider, self.account_key, client_key)
        if not made.payment.byok_from_client:  # the tool's own key is not ours to keep
            self._credentials[key] = made
        return made

    def redactor(self, credential: Credential) -> Redactor:
        """Masks the values of this credential."""
        if credential.payment.byok_from_client:
            return Redactor(credential.secrets)
        key = (credential.payment.project, credential.payment.provider)
        found = self._redactors.get(key)
        if found is None:
            found = self._redactors[key] = Redactor(credential.secrets)
        return found

    def redactor_of_all(self) -> Redactor:
        """Masks every secret of this configuration: for what we say ourselves."""
        if self._of_all is None:
            self._of_all = Redactor(self.settings.secrets())
        return self._of_all

    def subject(self, project_name: str) -> Subject:
        """What a project sends to Lava, for asking Lava's account about it."""
        lava = self.lava(project_name)
        base_url = f"{lava.origin.scheme}://{lava.host.decode('ascii')}{lava.base_path.decode('ascii')}"
        return diagnosis.subject_of(project_name, self.project(project_name), self.account_key, base_url)

    async def explain(self, fault: Fault, project_name: str, provider: str | None = None) -> None:
        """Put into ``fault`` which part is wrong: a key whose prefix says so, or what Lava's account says of a 401 or 402."""
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
        """Masks every secret of this configuration and the subject's key, which may stand in a ready token alone."""
        own, all_ = Redactor([subject.key.reveal()] if subject.key is not None else []), self.redactor_of_all()
        return lambda text: all_.text(own.text(text))

    def locate(self, method: str, path: bytes, noted: Mapping[bytes, bytes]) -> Place:
        """``routing.locate``, remembered: of the headers only what they speak decides."""
        key = (method, path, of_headers(noted))
        place = self.places.get(key)
        if place is None:
            place = routing.locate(method, path, noted, self.table)
            size = _ENTRY_BYTES + 2 * len(path)
            if size <= _LONGEST_ENTRY:
                self.places.keep(key, place, size)
        return place

    def plan(self, route: Route, client_key: str | None) -> Plan:
        """Everything about a route that does not change from request to request; see ``credential`` for the faults."""
        made = self.credential(route.project, route.provider.name, client_key)
        lava = self.lava(route.project)
        own = pool_key(route.project, made.authorization)
        origin = Origin(lava.origin.scheme, lava.origin.host, lava.origin.port, own)
        if not made.payment.byok_from_client:
            origin = self._origins.setdefault(origin, origin)  # the engine finds the pool of the same object faster
        return Plan(
            route,
            made,
            origin,
            lava.base_path + b"/" + route.target,
            [(b"host", lava.host), (b"authorization", made.authorization)],
            self.project(route.project).metadata,
            [
                (b"x-lava-proxy-project", route.project.encode("ascii")),
                (b"x-lava-proxy-provider", route.provider.name.encode("ascii")),
                *([(b"x-lava-proxy-hint", route.hint.encode("ascii"))] if route.hint is not None else []),
            ],
        )

    def remember(self, key: tuple[object, ...], plan: Plan) -> None:
        """Keep a plan: tools ask for the same few over and over. ``key`` holds nothing that is not ours to keep."""
        texts = sum(len(part) for part in key if isinstance(part, str | bytes))
        size = _ENTRY_BYTES + len(plan.route.target) + len(plan.target) + texts
        if plan.kept and size <= _LONGEST_ENTRY:
            self.plans.keep(key, plan, size)

    def usable(self) -> str | None:
        """Why requests of the default project could not be served, or ``None`` where they could."""
        name = self.table.default_project
        for candidate in [name] if name is not None else list(self.table.projects):
            project = self.table.projects[candidate]
            if project.forward_token or project.spend_key or project.secret_key or self.account_key:
                return None
        return "no Lava secret key is configured: set LAVA_SECRET_KEY, or secret_key under [lava], or run `lava-proxy login`"


def _overloaded(who: str, most: int, table: str) -> Fault:
    return Fault(
        "overloaded",
        f"{who} as many requests in flight as max_concurrent under {table} allows ({most}).",
        f"Try again in a moment, or raise max_concurrent under {table}.",
        headers=[(b"retry-after", b"1")],
    )


def digest(key: bytes) -> bytes:
    """The form in which local keys are kept and compared: finding one takes no time that depends on its characters."""
    return hashlib.sha256(key).digest()
