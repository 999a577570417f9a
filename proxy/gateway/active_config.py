"""The config snapshot: one configuration with everything that can be computed before the first request.

A request keeps the snapshot it started with. A reload makes a new one and swaps it in. Local keys are stored as hashes.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

from proxy.gateway.access import digest
from proxy.gateway.active_request import Deadlines
from proxy.gateway.budgets import BudgetPlan
from proxy.gateway.destinations.account_probe import AccountProbe
from proxy.gateway.destinations.lava import LavaDestination
from proxy.gateway.routing import RoutingTable
from proxy.protocol.redaction import Redactor

if TYPE_CHECKING:
    from proxy.config.settings import Project, Settings
    from proxy.lava.tokens import Credential
    from proxy.protocol.redaction import Secret
    from proxy.upstream import Engine

_NUMBERS = count(1)
_SHARE_PERCENT = 80
"""Share of ``max_concurrent`` for each of several projects without a limit of its own, so that one cannot block the others."""


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
        self.plans = {
            name: plan
            for name, project in self.table.projects.items()
            if project.budget is not None and (plan := BudgetPlan(name, project.budget)).limits
        }
        """The budget, by project. Projects without one are left out."""
        self.number = next(_NUMBERS)
        """Later configurations have higher ones."""
        self.account_key: Secret | None = settings.lava.secret_key
        self.correlate = settings.ledger.enabled and settings.ledger.correlate
        """Whether a request carries its id in its metadata."""
        self.destination = LavaDestination(self)
        self.inquiries = inquiries or AccountProbe()
        self._redactors: dict[tuple[str, str], Redactor] = {}
        self._of_all: Redactor | None = None
        self.masking = asyncio.Lock()
        """Held while a large error response is masked in a thread."""

    def project(self, name: str) -> Project:
        """Return the settings of a project that routing has chosen."""
        return self.table.projects[name]

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

    def usable(self) -> str | None:
        """Return why requests of the default project cannot be served, or ``None`` if they can."""
        name = self.table.default_project
        return self.destination.unusable([name] if name is not None else self.table.projects)
