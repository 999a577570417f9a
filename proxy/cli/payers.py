"""Who pays for what, from the same tables of tokens and routes as the daemon's, without any connection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.gateway.active_config import ActiveConfig
from proxy.lava.tokens import needs_client_key
from proxy.protocol.errors import ProxyError
from proxy.protocol.providers import BUILTIN
from proxy.protocol.redaction import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.config.settings import Project, Settings
    from proxy.protocol.errors import Payment
    from proxy.upstream import Body, UpstreamRequest, UpstreamResponse

TOOLS_KEY = "the-key-of-the-tool"
"""In place of a provider key that only the tool's own request contains (``byok = "client"``)."""

_PREFIXES = ("aks_live_", "aks_test_", "lava_sk_", "lava_wk_", "sk-")


class _NoEngine:
    """The engine of a configuration that is only read."""

    async def open(
        self, out: UpstreamRequest, body: Body = None, content_length: int | None = None
    ) -> UpstreamResponse:
        raise RuntimeError("this command sends nothing")

    def close(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""


def prepared(settings: Settings) -> ActiveConfig:
    """Return the configuration as the daemon would use it."""
    return ActiveConfig(settings, _NoEngine())


def masked(secret: str) -> str:
    """Return the known prefix of the key and its last four characters."""
    prefix = next((prefix for prefix in _PREFIXES if secret.startswith(prefix)), "")
    return prefix + Secret(secret[len(prefix) :]).hint


@dataclass(frozen=True, slots=True)
class Share:
    """What one account pays for. An empty ``providers`` means every provider that no other share names."""

    providers: tuple[str, ...]
    payment: Payment | None
    problem: str | None = None
    """Why requests will be refused, if there is no payment."""
    key: str = ""
    """The provider key, masked, if the configuration contains one."""

    @property
    def words(self) -> str:
        """Return who pays, as a noun."""
        if self.payment is None:
            return self.problem or "no account"
        return in_words(self.payment) + (f", key {self.key}" if self.key else "")


@dataclass(frozen=True, slots=True)
class PayingAccount:
    """One project: who pays, at which Lava, and what to configure in a tool."""

    name: str
    is_default: bool
    shares: tuple[Share, ...]
    lava: str
    credential: str
    path: str
    """The path between the daemon's address and ``/v1``: ``/p/website``, or nothing."""
    local_key: str
    reachable: bool
    metadata: dict[str, str] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """Return who pays, one line for each share."""
        if len(self.shares) == 1:
            return [self.shares[0].words]
        return [f"{', '.join(share.providers) or 'other providers'}: {share.words}" for share in self.shares]


def accounts(settings: Settings) -> Iterator[PayingAccount]:
    """Yield every project, in the order of the file, or the implicit one if there is none."""
    config = prepared(settings)
    table = config.table
    any_keys = bool(config.keys)
    for name, project in table.projects.items():
        is_default = name == table.default_project
        lava = config.destination.address(name)
        key, reachable = _local_key(project, settings, any_keys)
        from_tool = [provider for provider, value in project.byok.items() if value == "client"]
        if from_tool:
            whose = "every provider" if "*" in from_tool else ", ".join(from_tool)
            key = (f"{key}; " if any_keys else "") + f"for {whose} the tool's own provider key"
            key += " (then the local key goes into the header x-lava-proxy-key)" if any_keys else ""
        yield PayingAccount(
            name,
            is_default,
            tuple(_shares(config, name, project)),
            f"{lava.origin.scheme}://{lava.host.decode()}{lava.base_path.decode()}",
            _credential(project, settings),
            # A project's own key already chooses it.
            "" if is_default or project.keys else f"/p/{name}",
            key,
            reachable,
            dict(project.metadata),
        )


def _shares(config: ActiveConfig, name: str, project: Project) -> Iterator[Share]:
    for provider in project.byok:
        if provider != "*":
            yield _share(config, name, project, provider, (provider,))
    other = next(provider for provider in BUILTIN if provider not in project.byok)
    yield _share(config, name, project, other, ())


def _share(config: ActiveConfig, name: str, project: Project, provider: str, providers: tuple[str, ...]) -> Share:
    try:
        made = config.destination.credential(name, provider, TOOLS_KEY if needs_client_key(project, provider) else None)
    except ProxyError as fault:
        if fault.code == "byok_key_missing":
            return Share(providers, None, "no account (refused: the project has only the provider keys above)")
        return Share(providers, None, f"no account ({fault.message.rstrip('.')})")
    own = project.byok.get(provider)
    return Share(providers, made.payment, key=masked(own.reveal()) if isinstance(own, Secret) else "")


def in_words(payment: Payment) -> str:
    """Return who pays, as a noun."""
    customer = f"connection {payment.connection_id}" if payment.connection_id else ""
    customer = customer or (f"customer {payment.customer_id}" if payment.customer_id else "")
    metered = f", metered as {payment.meter}" if payment.meter else ""
    if payment.payer == "provider_account":
        if payment.byok_from_client:
            return f"your account at the provider, by the key that the tool sends{metered}"
        return f"your own account at the provider{metered}"
    if payment.payer == "spend_key":
        return "the account behind the spend key"
    if payment.payer == "customer":
        return f"the wallet behind {customer}{metered}"
    if payment.payer == "merchant":
        return f"the merchant wallet{metered}" + (f" to {customer}, who is not charged" if customer else "")
    return f"the account that the ready forward token names{metered}"


def _credential(project: Project, settings: Settings) -> str:
    for kind, secret in (
        ("forward token", project.forward_token),
        ("spend key", project.spend_key),
        ("its own secret key", project.secret_key),
        ("secret key", settings.lava.secret_key),
    ):
        if secret is not None:
            # The last four characters of a token identify it, and show nothing of the key in it.
            return f"{kind} {masked(secret.reveal())}"
    return "no key"


def _local_key(project: Project, settings: Settings, any_keys: bool) -> tuple[str, bool]:
    """Return which local key a tool needs, and whether there is one."""
    if project.keys:
        return f"this project's local key {masked(project.keys[0].reveal())}", True
    if settings.server.keys:
        return f"the local key {masked(settings.server.keys[0].reveal())}", True
    if any_keys:
        return "none is good for this project", False
    return "any value (no local key is configured)", True


def base_urls(account: PayingAccount, base: str) -> dict[str, str]:
    """Return the base URL for each kind of tool. `base` is the daemon's address."""
    root = base + account.path
    return {"openai": f"{root}/v1", "anthropic": root, "google": root}


_PUBLIC = frozenset({"connection_id", "customer_id", "meter_slug", "disable_billing"})


def masked_fields(token: dict[str, object]) -> dict[str, object]:
    """Return a decoded token, in its order, with every value masked that is not known to be public."""
    shown: dict[str, object] = {}
    for name, value in token.items():
        if value is None or isinstance(value, bool) or name in _PUBLIC:
            shown[name] = value
        elif value == TOOLS_KEY:
            shown[name] = "(the key that the tool sends)"
        else:
            shown[name] = masked(value) if isinstance(value, str) else "…"
    return shown
