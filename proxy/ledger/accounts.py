"""The accounts at Lava that bill the projects: one per secret key and address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from proxy.config.settings import IMPLICIT_PROJECT, Project
from proxy.lava.tokens import base_url_for, read_token
from proxy.protocol.redaction import Secret

if TYPE_CHECKING:
    from proxy.config.settings import Settings
    from proxy.lava import Lava
    from proxy.lava.client import ApiSender


MAX_WAIT_SECONDS: Final = 70.0
"""Lava allows 1,000 calls a minute: a list of 100,000 records needs as many."""
LIST_RETRIES: Final = 4
"""Of the calls that read a list: it would have to be read from its beginning again."""


class BillingAccount(NamedTuple):
    """An account whose key can read records. ``projects`` are the names of those that it bills.

    ``others`` are the configured ones that it does not bill. If there is no other account (``alone``), it also bills the projects
    of the ledger that the configuration does not name any more.
    """

    key: Secret
    base_url: str
    projects: tuple[str, ...]
    others: tuple[str, ...] = ()
    alone: bool = True

    @property
    def scope(self) -> str:
        """The account's name in ``reconciliation`` and for people: host, and the last characters of the key."""
        return f"{urlsplit(self.base_url).netloc.rpartition('@')[2]} {self.key.hint}"

    def client(self, settings: Settings, sender: ApiSender | None = None, *, retries: int = 0) -> Lava:
        """Return a client. ``sender`` carries its calls, instead of connections of its own."""
        from proxy.lava import Lava

        parts = urlsplit(self.base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        proxy = settings.upstream.proxy_for(parts.scheme, parts.hostname or "", port)
        return Lava(
            self.key,
            base_url=self.base_url,
            retries=retries,
            max_wait=MAX_WAIT_SECONDS,
            ca_file=settings.upstream.ca_file,
            proxy=proxy,
            sender=sender,
        )


def accounts_of(settings: Settings) -> list[BillingAccount]:
    """Return the accounts of these settings.

    The records of a spend key are read with the project's or ``[lava]``'s secret key, of whose account it is taken to be one.
    """
    found: dict[tuple[str, str], tuple[Secret, list[str]]] = {}
    for name, project in (settings.projects or {IMPLICIT_PROJECT: Project()}).items():
        key = _key_of(project, settings)
        if key is None:
            continue
        base = settings.lava.base_url
        base = base_url_for(key.reveal()) if base == "auto" else base
        found.setdefault((key.reveal(), base), (key, []))[1].append(name)
    return [
        BillingAccount(
            key, base, tuple(names), tuple(each for each in settings.projects if each not in names), len(found) == 1
        )
        for (_, base), (key, names) in found.items()
    ]


def _key_of(project: Project, settings: Settings) -> Secret | None:
    if project.forward_token is not None:
        key = read_token(project.forward_token.reveal()).get("secret_key")
        return Secret(key) if isinstance(key, str) and key and not key.startswith("lava_sk_") else None
    return project.secret_key or settings.lava.secret_key
