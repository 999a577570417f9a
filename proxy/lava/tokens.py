"""Lava's credential for a project and a provider. Pure, and equal byte for byte to that of Lava's own SDK.

A forward token is ``base64(JSON)``: compact JSON in the SDK's field order, characters escaped as ``JSON.stringify`` does
(only what JSON requires, and lone surrogates), standard alphabet, padded. Source: output of ``@lavapayments/nodejs`` 8.1.0
and 11.2.0, recorded in ``tests/vectors/forward_tokens.json``.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

from proxy.protocol.errors import Payment, ProxyError
from proxy.protocol.redaction import Unshown

if TYPE_CHECKING:
    from proxy.config.settings import Project
    from proxy.protocol.redaction import Secret


class Unset(Enum):
    """The type of ``UNSET``."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET
"""A field that is absent (JavaScript's ``undefined``); ``None`` becomes ``null``."""

Option = str | None | Literal[Unset.UNSET]

PRODUCTION = "https://api.lavapayments.com/v1"
SANDBOX = "https://sandbox-api.lavapayments.com/v1"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def mint_token(
    secret_key: str,
    *,
    connection_id: Option = UNSET,
    customer_id: Option = UNSET,
    meter_slug: Option = UNSET,
    provider_key: Option = UNSET,
    disable_billing: bool | Literal[Unset.UNSET] | None = UNSET,
) -> str:
    """Return the forward token for these options, as the SDK's ``generateForwardToken`` makes it.

    ``connection_id`` is the name of SDK 8, ``customer_id`` and ``disable_billing`` those of SDK 9 and later; the field order
    is the same in both. Each option may be absent (``UNSET``), ``None`` (``null`` in the token) or a value.
    """
    fields: dict[str, object] = {
        "secret_key": secret_key,
        "connection_id": connection_id,
        "customer_id": customer_id,
        "meter_slug": meter_slug,
        "provider_key": provider_key,
        "disable_billing": disable_billing,
    }
    document = {name: value for name, value in fields.items() if value is not UNSET}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    text = _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def read_token(token: str) -> dict[str, Any]:
    """Return the members of a token: its JSON; ``{"secret_key": …}`` for a raw key or the form of 2025, joined by dots; or
    nothing if it cannot be read. Never raises."""
    if token.startswith(("aks_", "lava_")):
        return {"secret_key": token}
    try:
        padded = token + "=" * (-len(token) % 4)
        text = base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True).decode("utf-8")
    except (ValueError, binascii.Error):
        return {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        first, dot, _ = text.partition(".")
        return {"secret_key": first} if dot and first.startswith(("aks_", "lava_")) else {}
    return document if isinstance(document, dict) else {}


def base_url_for(credential: str | None) -> str:
    """Return Lava's address for this credential: the sandbox for a key that begins with ``aks_test_`` (the SDK's own rule),
    also inside a ready token; production for everything else. No trailing slash."""
    key = read_token(credential).get("secret_key") if credential else None
    return SANDBOX if isinstance(key, str) and key.startswith("aks_test_") else PRODUCTION


class Credential(Unshown):
    """The credential for one project and provider: the whole ``Authorization`` value, and who pays.

    ``secrets`` are the values to mask if an answer echoes them. ``repr`` does not show them.
    """

    __slots__ = ("authorization", "payment", "secrets")

    def __init__(self, authorization: bytes, payment: Payment, secrets: tuple[str, ...]) -> None:
        self.authorization = authorization
        self.payment = payment
        self.secrets = secrets

    def __repr__(self) -> str:
        return f"Credential({self.payment!r})"


def needs_client_key(project: Project, provider: str) -> bool:
    """Return whether this project takes the key for this provider from the tool's request."""
    return _byok(project, provider) == "client"


def _byok(project: Project, provider: str) -> Secret | Literal["client"] | None:
    byok = project.byok
    if not byok:
        return None
    found = byok.get(provider) or byok.get("*")
    if found is None:
        # Google's two addresses belong to one account with one key.
        twin = {"google": "googleOpenaiCompatible", "googleOpenaiCompatible": "google"}.get(provider)
        found = byok.get(twin) if twin else None
    return found


def credential(
    name: str, project: Project, provider: str, account_key: Secret | None, client_key: str | None = None
) -> Credential:
    """Return the credential of project `name` for `provider`.

    ``account_key`` is ``[lava]``'s key (the project's own takes precedence); ``client_key`` is the key in the tool's
    request, used only if the project says so. Raises ``ProxyError`` ``lava_key_missing`` or ``byok_key_missing``.
    """
    if project.forward_token is not None:
        return _ready(name, project.forward_token, provider)
    if project.spend_key is not None:
        payment = Payment(name, provider, "spend_key", "spend key", project.spend_key.hint)
        return _credential(project.spend_key.reveal(), payment)

    secret_key = project.secret_key or account_key
    if secret_key is None:
        raise ProxyError(
            "lava_key_missing",
            f'No Lava secret key is configured for project "{name}".',
            "Run `lava-proxy login`, or set the environment variable LAVA_SECRET_KEY before starting lava-proxy, or secret_key under [lava].",
        )
    own = _byok(project, provider)
    from_client = own == "client"
    provider_key = client_key if own == "client" else own.reveal() if own is not None else None
    if own is not None and not provider_key:
        raise ProxyError(
            "byok_key_missing",
            f'Project "{name}" uses the key of the tool itself for provider "{provider}", and the request has none.',
            "Give the tool your provider key as its API key; where it already holds a local key, send that one as x-lava-proxy-key.",
        )
    if own is None and project.byok and project.meter is None:
        raise ProxyError(
            "byok_key_missing",
            f'Project "{name}" pays with provider keys only, and has none for provider "{provider}".',
            f"Add {provider} under [projects.{name}.byok], or give the project a meter to use Lava's managed keys.",
        )

    key: Option = provider_key if own is not None else UNSET
    explicit: list[str] = []
    if project.connection_id is not None or project.customer_id is not None:
        explicit.append("connection" if project.connection_id is not None else "customer")
    if project.meter is not None:
        explicit.append("meter")
    if project.connection_id is not None:
        token = mint_token(
            secret_key.reveal(),
            connection_id=project.connection_id,
            meter_slug=project.meter,
            provider_key=key,
        )
    elif project.customer_id is not None:
        billing = UNSET if project.disable_billing is None else project.disable_billing
        token = mint_token(
            secret_key.reveal(),
            customer_id=project.customer_id,
            meter_slug=project.meter,
            provider_key=key,
            disable_billing=billing,
        )
    elif project.meter is not None:
        token = mint_token(secret_key.reveal(), meter_slug=project.meter, provider_key=key)
    elif own is not None:
        token = mint_token(secret_key.reveal(), connection_id=None, meter_slug=None, provider_key=key)
    else:
        token = mint_token(secret_key.reveal())

    customer_pays = bool(project.connection_id or project.customer_id) and project.disable_billing is not True
    payment = Payment(
        name,
        provider,
        "provider_account" if own is not None else "customer" if customer_pays else "merchant",
        "secret key",
        secret_key.hint,
        byok=own is not None,
        byok_from_client=from_client,
        connection_id=project.connection_id,
        customer_id=project.customer_id,
        meter=project.meter,
        explicit=tuple(explicit),
    )
    return _credential(token, payment, secret_key.reveal(), provider_key)


def _ready(name: str, forward_token: Secret, provider: str) -> Credential:
    """Return the credential of a token that was made elsewhere. It is read only to find who pays."""
    token = forward_token.reveal()
    members = read_token(token)

    def text(field: str) -> str | None:
        value = members.get(field)
        return value if isinstance(value, str) and value else None

    connection, customer, meter = text("connection_id"), text("customer_id"), text("meter_slug")
    byok = text("provider_key") is not None
    payer: str | None
    if byok:
        payer = "provider_account"
    elif (connection or customer) and members.get("disable_billing") is not True:
        payer = "customer"
    else:
        payer = "merchant" if members and "connection_secret" not in members else None
    payment = Payment(
        name,
        provider,
        payer,
        "forward token",
        forward_token.hint,
        byok=byok,
        connection_id=connection,
        customer_id=customer,
        meter=meter,
        explicit=tuple(
            word for word, value in (("connection", connection), ("customer", customer), ("meter", meter)) if value
        ),
    )
    return _credential(token, payment, text("secret_key"), text("provider_key"))


def _credential(token: str, payment: Payment, *secrets: str | None) -> Credential:
    return Credential(
        b"Bearer " + token.encode("utf-8"),
        payment,
        (token, *(secret for secret in secrets if secret is not None)),
    )
