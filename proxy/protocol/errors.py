"""The errors: whose fault it is, status and code of each, and its form in three dialects.

::

    Fault
    ├── client     malformed, not allowed, too large: nothing was sent to Lava
    ├── proxy      this daemon cannot serve now: overloaded, draining, a network failure
    ├── lava       Lava refused: the key, the balance, a spend key's cap, an unsupported target
    ├── provider   the provider behind Lava refused
    └── unknown    the response has no known shape; the message names both possibilities

``TABLE`` holds, per code, what CONTRACT section 6 fixes: status, the error type in each dialect, and whether an SDK may
retry. ``from_answer`` turns a response of Lava or of a provider into a ``ProxyError`` (or ``None``: it is relayed unchanged).
Everything here is pure.
"""

from __future__ import annotations

import json
import os
import random
import re
from dataclasses import dataclass, field
from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from proxy.protocol.dialects import Dialect, compact
from proxy.protocol.record import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Owner = Literal["client", "proxy", "lava", "provider", "unknown"]
Headers = list[tuple[bytes, bytes]]


class ErrorKind(NamedTuple):
    """One row of the table: ``retry`` is the value of ``x-should-retry``, ``None`` if it is not set."""

    status: int
    owner: Owner
    openai: str
    anthropic: str
    google: str
    retry: bool | None


GUARDED: Headers = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin")]
"""On every response of our own: no page of another origin can load it, not even as an image or a script. (The ``fetch`` of a
listed origin is not affected.)"""

_INVALID = ("invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT")
_UNAUTHENTICATED = ("authentication_error", "authentication_error", "UNAUTHENTICATED")
_PERMISSION = ("permission_error", "permission_error", "PERMISSION_DENIED")
_MISSING = ("not_found_error", "not_found_error", "NOT_FOUND")
_BROKE = ("insufficient_quota", "billing_error", "FAILED_PRECONDITION")
_CAPPED = ("insufficient_quota", "billing_error", "RESOURCE_EXHAUSTED")
_OVERLOADED = ("overloaded_error", "overloaded_error", "UNAVAILABLE")
_API = ("api_error", "api_error", "UNAVAILABLE")
_TIMEOUT = ("api_error", "timeout_error", "DEADLINE_EXCEEDED")
_TOO_LARGE = ("invalid_request_error", "request_too_large", "INVALID_ARGUMENT")

TABLE: Mapping[str, ErrorKind] = {
    "lava_unauthorized": ErrorKind(401, "lava", *_UNAUTHENTICATED, False),
    "lava_key_missing": ErrorKind(401, "proxy", *_UNAUTHENTICATED, False),
    "provider_key_rejected": ErrorKind(401, "provider", *_UNAUTHENTICATED, False),
    "lava_insufficient_balance": ErrorKind(402, "lava", *_BROKE, False),
    "provider_payment_required": ErrorKind(402, "provider", *_BROKE, False),
    "lava_spend_limit": ErrorKind(402, "lava", *_CAPPED, False),
    "lava_forbidden": ErrorKind(403, "lava", *_PERMISSION, False),
    "lava_unsupported_target": ErrorKind(400, "lava", *_INVALID, False),
    "lava_error": ErrorKind(502, "lava", *_API, None),
    "local_key_required": ErrorKind(401, "client", *_UNAUTHENTICATED, False),
    "local_key_invalid": ErrorKind(401, "client", *_UNAUTHENTICATED, False),
    "host_not_allowed": ErrorKind(421, "client", *_INVALID, False),
    "origin_not_allowed": ErrorKind(403, "client", *_PERMISSION, False),
    "project_not_found": ErrorKind(404, "client", *_MISSING, False),
    "provider_not_found": ErrorKind(404, "client", *_MISSING, False),
    "path_not_found": ErrorKind(404, "client", *_MISSING, False),
    "project_not_allowed": ErrorKind(403, "client", *_PERMISSION, False),
    "project_stopped": ErrorKind(403, "proxy", *_PERMISSION, False),
    "crossing_unsupported": ErrorKind(400, "client", *_INVALID, False),
    "byok_key_missing": ErrorKind(400, "client", *_INVALID, False),
    "bad_target": ErrorKind(400, "client", *_INVALID, False),
    "bad_request": ErrorKind(400, "client", *_INVALID, False),
    "body_too_large": ErrorKind(413, "client", *_TOO_LARGE, False),
    "method_not_allowed": ErrorKind(405, "client", *_INVALID, False),
    "request_timeout": ErrorKind(408, "client", *_INVALID, False),
    "target_too_long": ErrorKind(414, "client", *_INVALID, False),
    "expectation_failed": ErrorKind(417, "client", *_INVALID, False),
    "upgrade_required": ErrorKind(426, "client", *_INVALID, False),
    "headers_too_large": ErrorKind(431, "client", *_INVALID, False),
    "not_implemented": ErrorKind(501, "client", *_INVALID, False),
    "http_version_unsupported": ErrorKind(505, "client", *_INVALID, False),
    "overloaded": ErrorKind(503, "proxy", *_OVERLOADED, True),
    "shutting_down": ErrorKind(503, "proxy", *_OVERLOADED, True),
    "upstream_unreachable": ErrorKind(502, "proxy", *_API, True),
    "upstream_tls": ErrorKind(502, "proxy", *_API, False),
    "upstream_protocol": ErrorKind(502, "lava", *_API, False),
    "upstream_redirect": ErrorKind(502, "lava", *_API, False),
    "upstream_closed": ErrorKind(502, "lava", *_API, False),
    "upstream_timeout": ErrorKind(504, "lava", *_TIMEOUT, False),
    # Not in the contract's table: a fault of our own code. It must never happen, and must not look like another's fault.
    "internal_error": ErrorKind(500, "proxy", "api_error", "api_error", "INTERNAL", False),
}

_BY_STATUS: Mapping[int, tuple[str, str, str]] = {
    400: _INVALID,
    401: _UNAUTHENTICATED,
    402: _BROKE,
    403: _PERMISSION,
    404: _MISSING,
    413: _TOO_LARGE,
    429: ("rate_limit_error", "rate_limit_error", "RESOURCE_EXHAUSTED"),
    500: ("api_error", "api_error", "INTERNAL"),
    503: _OVERLOADED,
    504: _TIMEOUT,
    529: _OVERLOADED,
}


class ProxyError(Exception):
    """An error for the client.

    ``code`` is a key of ``TABLE``; ``what`` says what is wrong, ``hint`` in one sentence what to do next; ``quote``
    is the upstream's own message, in a sentence (empty: it sent none), and ``None`` if there was no response. ``details`` are
    further members of the ``lava_proxy`` object (``payer``, ``connection_id``, ``upstream_status`` …); ``headers`` are added to
    the response. ``status``, ``retry`` and ``owner`` are given only if they differ from the table.
    """

    def __init__(
        self,
        code: str,
        what: str,
        hint: str,
        *,
        quote: str | None = None,
        status: int | None = None,
        retry: bool | Literal["table"] | None = "table",
        owner: Owner | None = None,
        details: Mapping[str, object] | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(what)
        kind = TABLE[code]
        self.code = code
        self.what = what
        self.hint = hint
        self.quote = quote
        self.status = status or kind.status
        self.retry = kind.retry if retry == "table" else retry
        self.owner: Owner = owner or kind.owner
        self.details = dict(details or {})
        self.headers = tuple(headers)

    @property
    def message(self) -> str:
        """The message for the client.

        Many tools show nothing else of an explained response, so it includes the hint. The upstream's own message comes last.
        """
        return self.what if self.quote is None else " ".join(filter(None, (self.what, self.hint, self.quote)))

    @property
    def outcome(self) -> Outcome:
        """The outcome of a request that ends with this error before its response has started."""
        if self.code.startswith("upstream_"):
            return Outcome.TIMEOUT if self.code == "upstream_timeout" else Outcome.UPSTREAM_ERROR
        owner = TABLE[self.code].owner
        return {"lava": Outcome.LAVA_ERROR, "provider": Outcome.PROVIDER_ERROR}.get(owner, Outcome.REFUSED)

    def mask(self, mask: Callable[[str], str]) -> None:
        """Mask secrets in every text of the error."""
        self.what, self.hint = mask(self.what), mask(self.hint)
        self.quote = self.quote and mask(self.quote)
        for name, detail in self.details.items():
            if isinstance(detail, str):
                self.details[name] = mask(detail)


@dataclass(slots=True)
class ErrorReply:
    """A whole response of our own."""

    status: int
    headers: Headers
    body: bytes


def body_of(
    fault: ProxyError,
    dialect: Dialect,
    request_id: str,
    *,
    project: str | None = None,
    provider: str | None = None,
) -> dict[str, Any]:
    """Return the JSON body of ``fault`` in ``dialect`` (``OTHER`` uses OpenAI's)."""
    kind = TABLE[fault.code]
    openai, anthropic, google = kind.openai, kind.anthropic, kind.google
    if fault.code == "lava_error":
        openai, anthropic, google = _BY_STATUS.get(fault.status, _API if fault.status >= 500 else _INVALID)
    ours: dict[str, object] = {
        "code": fault.code,
        "fault": fault.owner,
        "project": project,
        "provider": provider,
        "hint": fault.hint,
        "request_id": request_id,
        **fault.details,
    }
    if dialect is Dialect.ANTHROPIC:
        error = {"type": anthropic, "message": fault.message, "lava_proxy": ours}
        return {"type": "error", "error": error, "request_id": request_id}
    if dialect is Dialect.GOOGLE:
        return {"error": {"code": fault.status, "message": fault.message, "status": google, "lava_proxy": ours}}
    return {
        "error": {
            "message": fault.message,
            "type": openai,
            "param": None,
            "code": fault.code,
            "lava_proxy": ours,
        }
    }


def render(
    fault: ProxyError,
    dialect: Dialect,
    request_id: str,
    *,
    project: str | None = None,
    provider: str | None = None,
) -> ErrorReply:
    """Return the whole response for ``fault``: status, headers (lower-case names, with a ``date``) and body."""
    body = compact(body_of(fault, dialect, request_id, project=project, provider=provider))
    encoded_id = request_id.encode("ascii")
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"date", formatdate(usegmt=True).encode("ascii")),
        (b"cache-control", b"no-store"),
        *GUARDED,
        (b"x-lava-proxy-error", fault.code.encode("ascii")),
        (b"x-lava-proxy-request-id", encoded_id),
        (b"x-request-id", encoded_id),
        (b"request-id", encoded_id),
    ]
    if project is not None:
        headers.append((b"x-lava-proxy-project", project.encode("ascii", "replace")))
    if provider is not None:
        headers.append((b"x-lava-proxy-provider", provider.encode("ascii", "replace")))
    if fault.retry is not None:
        headers.append((b"x-should-retry", b"true" if fault.retry else b"false"))
    headers.extend(fault.headers)
    return ErrorReply(fault.status, headers, body)


def redirected(status: int) -> ProxyError:
    """Return the error for a redirect from Lava."""
    return ProxyError(
        "upstream_redirect",
        f"Lava answered with a redirect ({status}), which is never followed: it would carry your credential elsewhere.",
        "Check lava.base_url; Lava itself does not redirect.",
        details={"upstream_status": status},
    )


_REFUSALS: Mapping[str, str] = {
    "request_timeout": "Send the whole request without long pauses.",
    "target_too_long": "Shorten the address; long data belongs in the body.",
    "headers_too_large": "Send fewer or shorter headers.",
    "upgrade_required": "Use plain HTTP: chat completions, responses, messages or generateContent, streaming, and audio/speech "
    "and audio/transcriptions for sound; a tool that can do both, as Codex can, goes on over HTTP by itself.",
    "expectation_failed": "Leave the Expect header out, or send Expect: 100-continue.",
    "http_version_unsupported": "Use HTTP/1.1.",
    "method_not_allowed": "Use GET, HEAD, POST, PUT, PATCH or DELETE.",
    "overloaded": "Try again in a moment.",
}


def refusal(code: str, message: str) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of a response to bytes that are no valid request.

    It has OpenAI's shape, because no dialect is known yet. The connection must be closed after it.
    """
    fault = ProxyError(code, message, _REFUSALS.get(code, "Send a well-formed HTTP/1.1 request."), headers=_extra(code))
    reply = render(fault, Dialect.OPENAI, new_request_id())
    return reply.status, reply.headers, reply.body


def _extra(code: str) -> Headers:
    if code == "method_not_allowed":
        return [(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE")]
    return [(b"retry-after", b"1")] if code == "overloaded" else []


def new_request_id() -> str:
    """Return ``req_`` and 24 hexadecimal digits: 96 random bits, so that two daemons never share an id."""
    return "req_" + os.urandom(12).hex()


class RequestIds:
    """Ids that sort by time: milliseconds since the epoch and 48 random bits. An id is a name, not a secret."""

    def __init__(self) -> None:
        self._bits = random.Random(os.urandom(32)).getrandbits  # noqa: S311  (names, see above)

    def next(self) -> str:
        """Return a new id."""
        return f"req_{int(time() * 1000):012x}{self._bits(48):012x}"


# --- what Lava and the providers answer ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Payment:
    """The payer of a request, in words that may be shown: ids and names, and the last four characters of a key.

    ``payer`` is ``merchant``, ``customer``, ``provider_account``, ``spend_key``, or ``None`` if a ready token does not name
    one. ``key_kind`` and ``key_hint`` are the kind and the last four characters of the credential sent to Lava.
    """

    project: str
    provider: str
    payer: str | None
    key_kind: str = "secret key"
    key_hint: str = ""
    byok: bool = False
    byok_from_client: bool = False
    connection_id: str | None = None
    customer_id: str | None = None
    meter: str | None = None
    explicit: tuple[str, ...] = field(default=())
    """Names of the settings in the token, for the list of what was checked."""

    def details(self) -> dict[str, object]:
        """Return the members of ``lava_proxy`` about the payer."""
        known = {
            "payer": self.payer,
            "connection_id": self.connection_id,
            "customer_id": self.customer_id,
            "meter": self.meter,
        }
        return {name: value for name, value in known.items() if value is not None}


# The headers of an error response that are relayed: when an SDK may retry, and the ids that a person can quote.
_KEPT = (b"retry-after", b"x-ratelimit-", b"x-lava-request-id")
UNSUPPORTED = frozenset({"forward_endpoint_not_supported", "forward_model_not_supported", "forward_model_invalid"})
# Whole words: a «parameter» is not a meter.
_MENTIONS_LAVA = re.compile(
    r"(?<![a-z])(wallet|spend[ _-]?key|service[ _-]?key|meter|connection|customer)s?(?![a-z])", re.IGNORECASE
)
_SPEND_KEY = re.compile(r"(?<![a-z])(service|spend)[ _-]?key", re.IGNORECASE)
_LIMIT = re.compile(r"(?<![a-z])((limit|cap|budget)s?(?![a-z])|exceed)", re.IGNORECASE)
_RATE = re.compile(
    r"rate[ _-]?limit|per (second|minute)", re.IGNORECASE
)  # a rate limit ends in a moment and is not a cap


@dataclass(slots=True)
class _ErrorFields:
    """The fields of an error body, read liberally."""

    message: str
    code: str
    shape: Literal["lava", "provider", "none"]


def _read(status: int, body: bytes) -> _ErrorFields:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace").strip()
        looks_like_page = text[:1] == "<"
        return _ErrorFields("" if looks_like_page else text[:500], "", "none")
    if isinstance(document, list) and document and isinstance(document[0], dict):
        document = document[0]  # Google's streams without alt=sse are arrays, also for an error
    if not isinstance(document, dict):
        return _ErrorFields(document[:500] if isinstance(document, str) else "", "", "none")
    anthropic = document.get("type") == "error"
    error = document.get("error")
    if not isinstance(error, dict):
        message = next((text for text in (error, document.get("message"), document.get("detail")) if text), "")
        return _ErrorFields(message[:2000] if isinstance(message, str) else "", "", "provider" if anthropic else "none")
    raw_message, raw_code, said_status = error.get("message"), error.get("code"), error.get("status")
    message = raw_message[:2000] if isinstance(raw_message, str) else ""
    code = raw_code[:200] if isinstance(raw_code, str) else ""
    same_status = isinstance(said_status, int | float) and not isinstance(said_status, bool) and said_status == status
    if code.startswith("forward_") or same_status:
        return _ErrorFields(message, code, "lava")
    openai = "type" in error and "param" in error
    google = isinstance(said_status, str) and said_status.isupper()
    return _ErrorFields(message, code, "provider" if openai or google or anthropic else "none")


def from_answer(
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    payment: Payment,
    *,
    lava_request_id: str | None = None,
) -> ProxyError | None:
    """Return the error for a response of Lava or a provider, or ``None`` if it is relayed unchanged.

    ``body`` is the decoded error body (or its beginning); it may be HTML, empty or anything else. Never raises. The caller
    has already masked secrets in the upstream's message.
    """
    parsed = _read(status, body)
    shape = parsed.shape
    from_lava = shape == "lava"
    owner: Owner = "lava" if from_lava else "provider"
    if shape == "none":
        if status not in (401, 402, 403):
            return None
        owner = "unknown"
        from_lava = not payment.byok
        # A body without a known shape: the words of the message decide.
        if status != 401 and (_MENTIONS_LAVA.search(parsed.message) or _MENTIONS_LAVA.search(parsed.code)):
            from_lava, owner = True, "lava"
    if not from_lava and status not in (401, 402):
        return None
    details = payment.details()
    details["upstream_status"] = status
    if parsed.message:
        details["upstream_message"] = parsed.message
    if lava_request_id is not None:
        details["lava_request_id"] = lava_request_id
    keep = [(name, value) for name, value in headers if name.lower().startswith(_KEPT)]
    code, what, hint = _explain(status, parsed, payment, from_lava, owner)
    speaker = {"lava": "Lava", "provider": f'Provider "{payment.provider}"'}.get(owner, "The answer")
    quoted = f"{speaker} said: «{parsed.message}»" if parsed.message else ""
    # A target that Lava does not serve is always 400; every other error keeps its status.
    fixed = None if code == "lava_unsupported_target" else status
    return ProxyError(code, what, hint, quote=quoted, status=fixed, owner=owner, details=details, headers=keep)


def with_hint(body: bytes, hint: str) -> bytes:
    """Return a provider's error with our hint after its own message; ``body`` itself if it has no known message field."""
    try:
        document = json.loads(body)
        message = document["error"]["message"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return body
    if not isinstance(message, str):
        return body
    document["error"]["message"] = f"{message} (lava-proxy: {hint})"
    return compact(document)


def _explain(
    status: int, parsed: _ErrorFields, payment: Payment, from_lava: bool, owner: Owner
) -> tuple[str, str, str]:
    """Return code, what is wrong and what to do, one sentence each, based only on the response and the configuration."""
    if from_lava and status in (402, 403, 429) and _is_spend_limit(f"{parsed.code} {parsed.message}", status, payment):
        return (
            "lava_spend_limit",
            f"{_who(owner, 'says')} a limit of {_key(payment)}{_place(payment)} is reached.",
            "Raise the limit of that spend key in Lava, wait for its next cycle, or use another key.",
        )
    if status == 401:
        return _explain_401(payment, from_lava, owner)
    if status == 402:
        return _explain_402(payment, from_lava, owner)
    if status == 403:
        hint = "Check in Lava what this key may do."
        if payment.payer == "spend_key":
            hint = "Check the spend key's request shape (OpenAI or Anthropic), models and providers in Lava."
        return (
            "lava_forbidden",
            f"{_who(owner, 'refuses')} this request made with {_key(payment)}{_place(payment)}.",
            hint,
        )
    if parsed.code in UNSUPPORTED:
        return (
            "lava_unsupported_target",
            f'Lava does not serve this endpoint or model of provider "{payment.provider}".',
            "Use a model and an endpoint that Lava lists for this provider, or another provider.",
        )
    name = f" ({parsed.code})" if parsed.code else ""
    hint = (
        "Change the request as Lava's message says." if parsed.message else "Check the request's model and parameters."
    )
    if status == 429 or status >= 500:
        hint = "Wait and try again."
    return "lava_error", f"Lava answered {status}{name}.", hint


def _is_spend_limit(text: str, status: int, payment: Payment) -> bool:
    """Whether a refusal is the cap of a spend key (until its next cycle), and not a rate limit (which ends in a moment)."""
    if not _LIMIT.search(text) or (status == 429 and _RATE.search(text)):
        return False
    return payment.payer == "spend_key" or _SPEND_KEY.search(text) is not None


def _who(owner: Owner, verb: str) -> str:
    return f"Lava {verb}" if owner == "lava" else f"Lava, or a network in front of it, {verb}"


def _explain_401(payment: Payment, from_lava: bool, owner: Owner) -> tuple[str, str, str]:
    if from_lava:
        what = "what was checked" if owner == "lava" else "what was sent"
        return (
            "lava_unauthorized",
            f'{_who(owner, "rejects")} {_key(payment)} (project "{payment.project}"); {what}: {_checked(payment)}.',
            "Check that the key is active and of the right environment (live or test)"
            + (", and that the names sent with it exist in Lava." if payment.explicit else "."),
        )
    if not payment.byok:
        return (
            "provider_key_rejected",
            f'Provider "{payment.provider}" says no (401) to the key that Lava itself uses there; your own keys were not '
            "involved.",
            f"Tell Lava's support, or {_bring_own_key(payment)}.",
        )
    own, where = _own_key(payment)
    if owner == "unknown":
        return (
            "provider_key_rejected",
            f'The answer was 401 without saying from whom: either provider "{payment.provider}" rejects {own}, or Lava rejects '
            f"{_key(payment)}{_place(payment)}.",
            f"Check the provider key {where} first, then the Lava key.",
        )
    return (
        "provider_key_rejected",
        f'Provider "{payment.provider}" rejects {own} (project "{payment.project}").',
        f"Replace the provider key {where}.",
    )


def _own_key(payment: Payment) -> tuple[str, str]:
    """Return the BYOK key of a request in words, and its setting."""
    if payment.byok_from_client:
        return "the provider key that your tool sent", "in your tool"
    if payment.key_kind == "forward token":
        return "the provider key in your forward token", "in the forward token, by making a new one"
    return "your own provider key", f"under [projects.{payment.project}.byok]"


def _bring_own_key(payment: Payment) -> str:
    """Return how to pay the provider directly: a project with a ready credential cannot have another key."""
    if payment.key_kind == "secret key":
        return f"give the project your own provider key under [projects.{payment.project}.byok]"
    return f"use a project with your own provider key in place of the {payment.key_kind}"


def _explain_402(payment: Payment, from_lava: bool, owner: Owner) -> tuple[str, str, str]:
    own_key = _bring_own_key(payment)
    if from_lava:
        if payment.payer == "customer":
            kind = "connection" if payment.connection_id else "customer"
            wallet = f"the wallet behind {kind} {shorten(payment.connection_id or payment.customer_id or '')}"
            advice = f"Top up that customer's wallet, or {own_key}."
        elif payment.payer == "spend_key":
            wallet = f"the wallet behind {_key(payment)}"
            advice = "Top up the wallet that the spend key belongs to, or use another key."
        elif payment.payer == "merchant":
            wallet = f"the merchant wallet behind {_key(payment)}"
            advice = f"Top up your wallet at Lava, or {own_key}."
        else:
            wallet = "the wallet that pays for this request"
            if payment.byok:
                wallet = "the wallet that pays for Lava's metering of your own provider key"
            advice = "Top up that wallet at Lava."
        what = f"{_who(owner, 'says')} {wallet}{_place(payment)} is out of funds."
        return "lava_insufficient_balance", what, advice
    if not payment.byok:
        return (
            "provider_payment_required",
            f'Provider "{payment.provider}" says payment is required (402) on the account that Lava itself uses there; your '
            "wallet was not named.",
            f"Tell Lava's support, or {own_key}.",
        )
    own = f"the account of {_own_key(payment)[0]}"
    if owner == "unknown":
        return (
            "provider_payment_required",
            f'The answer was 402 without saying from whom: either {own} at "{payment.provider}" is out of funds, or the Lava '
            f"wallet behind {_key(payment)}{_place(payment)} is.",
            f'Check the balance at "{payment.provider}" first, then the one at Lava.',
        )
    return (
        "provider_payment_required",
        f'Provider "{payment.provider}" says {own} (project "{payment.project}") must be paid first.',
        f'Add funds to your account at "{payment.provider}".',
    )


def _key(payment: Payment) -> str:
    return f"the {payment.key_kind} {payment.key_hint}".rstrip()


def _checked(payment: Payment) -> str:
    """Return the contents of the credential sent to Lava, in words."""
    people = {"connection": payment.connection_id, "customer": payment.customer_id}
    sent = [
        f'meter "{payment.meter}"' if kind == "meter" else f"{kind} {shorten(people[kind] or '')}"
        for kind in payment.explicit
    ]
    return ", ".join(("the key", *sent)) if sent else "the key alone"


def _place(payment: Payment) -> str:
    meter = f', meter "{payment.meter}"' if payment.meter else ""
    return f' (project "{payment.project}"{meter})'


def shorten(identity: str) -> str:
    """Return ``conn_abc…123``: enough of an id to recognise it, because messages end up in screenshots and bug reports."""
    return identity if len(identity) < 11 else f"{identity[:8]}…{identity[-3:]}"
