"""The fault tree: whose fault it is, which status and code it has, and how it is told in three dialects.

::

    Fault
    ├── client     malformed, not allowed, too large: nothing was sent to Lava
    ├── proxy      we cannot serve now: overloaded, draining, the network below us
    ├── lava       Lava said no: the key, the balance, a spend key's cap, a target it does not serve
    ├── provider   the provider behind Lava said no
    └── unknown    the answer had no shape to go by; the message names both possibilities

``TABLE`` holds, per code, what CONTRACT section 6 fixes: status, the error type in each dialect, and whether an SDK may
try again. ``from_answer`` turns an answer of Lava or of a provider into a ``Fault`` (or ``None``: it passes untouched).
Everything here is pure.
"""

from __future__ import annotations

import json
import os
import random
import re
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from proxy.dialects import Dialect, compact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Owner = Literal["client", "proxy", "lava", "provider", "unknown"]
Headers = list[tuple[bytes, bytes]]


class Kind(NamedTuple):
    """One row of the table: ``retry`` is the value of ``x-should-retry``, ``None`` where it is not set."""

    status: int
    owner: Owner
    openai: str
    anthropic: str
    google: str
    retry: bool | None


GUARDED: Headers = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin")]
"""On every answer that we make ourselves: no page of another origin gets at it, not even as an image or a script. (A listed
origin's ``fetch`` is not held to this.)"""

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

TABLE: Mapping[str, Kind] = {
    "lava_unauthorized": Kind(401, "lava", *_UNAUTHENTICATED, False),
    "lava_key_missing": Kind(401, "proxy", *_UNAUTHENTICATED, False),
    "provider_key_rejected": Kind(401, "provider", *_UNAUTHENTICATED, False),
    "lava_insufficient_balance": Kind(402, "lava", *_BROKE, False),
    "provider_payment_required": Kind(402, "provider", *_BROKE, False),
    "lava_spend_limit": Kind(402, "lava", *_CAPPED, False),
    "lava_forbidden": Kind(403, "lava", *_PERMISSION, False),
    "lava_unsupported_target": Kind(400, "lava", *_INVALID, False),
    "lava_error": Kind(502, "lava", *_API, None),
    "local_key_required": Kind(401, "client", *_UNAUTHENTICATED, False),
    "local_key_invalid": Kind(401, "client", *_UNAUTHENTICATED, False),
    "host_not_allowed": Kind(421, "client", *_INVALID, False),
    "origin_not_allowed": Kind(403, "client", *_PERMISSION, False),
    "project_not_found": Kind(404, "client", *_MISSING, False),
    "provider_not_found": Kind(404, "client", *_MISSING, False),
    "path_not_found": Kind(404, "client", *_MISSING, False),
    "project_not_allowed": Kind(403, "client", *_PERMISSION, False),
    "crossing_unsupported": Kind(400, "client", *_INVALID, False),
    "byok_key_missing": Kind(400, "client", *_INVALID, False),
    "bad_target": Kind(400, "client", *_INVALID, False),
    "bad_request": Kind(400, "client", *_INVALID, False),
    "body_too_large": Kind(413, "client", *_TOO_LARGE, False),
    "method_not_allowed": Kind(405, "client", *_INVALID, False),
    "request_timeout": Kind(408, "client", *_INVALID, False),
    "target_too_long": Kind(414, "client", *_INVALID, False),
    "expectation_failed": Kind(417, "client", *_INVALID, False),
    "upgrade_required": Kind(426, "client", *_INVALID, False),
    "headers_too_large": Kind(431, "client", *_INVALID, False),
    "not_implemented": Kind(501, "client", *_INVALID, False),
    "http_version_unsupported": Kind(505, "client", *_INVALID, False),
    "overloaded": Kind(503, "proxy", *_OVERLOADED, True),
    "shutting_down": Kind(503, "proxy", *_OVERLOADED, True),
    "upstream_unreachable": Kind(502, "proxy", *_API, True),
    "upstream_tls": Kind(502, "proxy", *_API, False),
    "upstream_protocol": Kind(502, "lava", *_API, False),
    "upstream_redirect": Kind(502, "lava", *_API, False),
    "upstream_closed": Kind(502, "lava", *_API, False),
    "upstream_timeout": Kind(504, "lava", *_TIMEOUT, False),
    # Not in the contract's table: a fault of our own code. It must never happen, and must not look like anybody else's.
    "internal_error": Kind(500, "proxy", "api_error", "api_error", "INTERNAL", False),
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


class Fault(Exception):
    """Something that a client must be told.

    ``code`` is a key of ``TABLE``; ``what`` says what is wrong, ``hint`` in one sentence what to do next; ``said`` are the
    words of whoever answered, in a sentence (empty: there were none), and ``None`` where nobody did. ``details`` are further members of the
    ``lava_proxy`` object (``payer``, ``connection_id``, ``upstream_status`` …); ``headers`` are added to the answer.
    ``status``, ``retry`` and ``owner`` are given only where they differ from the table.
    """

    def __init__(
        self,
        code: str,
        what: str,
        hint: str,
        *,
        said: str | None = None,
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
        self.said = said
        self.status = status or kind.status
        self.retry = kind.retry if retry == "table" else retry
        self.owner: Owner = owner or kind.owner
        self.details = dict(details or {})
        self.headers = tuple(headers)

    @property
    def message(self) -> str:
        """What the client reads. Of an answer that is explained many tools show nothing else, so what to do stands in it;
        the other's own words come last."""
        return self.what if self.said is None else " ".join(filter(None, (self.what, self.hint, self.said)))

    def mask(self, mask: Callable[[str], str]) -> None:
        """Take secrets out of everything that it tells."""
        self.what, self.hint = mask(self.what), mask(self.hint)
        self.said = self.said and mask(self.said)
        for name, detail in self.details.items():
            if isinstance(detail, str):
                self.details[name] = mask(detail)


@dataclass(slots=True)
class Reply:
    """A whole answer of ours."""

    status: int
    headers: Headers
    body: bytes


def body_of(
    fault: Fault,
    dialect: Dialect,
    request_id: str,
    *,
    project: str | None = None,
    provider: str | None = None,
) -> dict[str, Any]:
    """The JSON body of ``fault`` in ``dialect`` (``OTHER`` reads as OpenAI's)."""
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
    fault: Fault,
    dialect: Dialect,
    request_id: str,
    *,
    project: str | None = None,
    provider: str | None = None,
) -> Reply:
    """The whole answer for ``fault``: status, headers (lower-case names, with a ``date``) and body."""
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
    return Reply(fault.status, headers, body)


def redirected(status: int) -> Fault:
    """What a client is told of a redirect of Lava's, whatever it asked for."""
    return Fault(
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
    """An answer to bytes that never became a request: in OpenAI's shape, as no dialect can be known yet.

    Returns status, headers and body. The connection is to be closed after it.
    """
    fault = Fault(code, message, _REFUSALS.get(code, "Send a well-formed HTTP/1.1 request."), headers=_extra(code))
    reply = render(fault, Dialect.OPENAI, new_request_id())
    return reply.status, reply.headers, reply.body


def _extra(code: str) -> Headers:
    if code == "method_not_allowed":
        return [(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE")]
    return [(b"retry-after", b"1")] if code == "overloaded" else []


def new_request_id() -> str:
    """``req_`` and 24 hexadecimal digits: 96 random bits, so that two daemons never share one."""
    return "req_" + os.urandom(12).hex()


class RequestIds:
    """The same ids for the hot path, without a system call for each: an id is a name, not a secret."""

    def __init__(self) -> None:
        self._bits = random.Random(os.urandom(32)).getrandbits  # noqa: S311  (names, see above)

    def next(self) -> str:
        """A new id."""
        return f"req_{self._bits(96):024x}"


# --- what Lava and the providers answer ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Payment:
    """Who is asked to pay for a request, in words safe to show: ids and names, and the last four of a key.

    ``payer`` is ``merchant``, ``customer``, ``provider_account``, ``spend_key`` or ``None`` where a ready token does not
    tell. ``key_kind`` and ``key_hint`` name the credential that went to Lava, as words and its last four characters.
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
    """Names of the settings that were in the token, for «what was checked»."""

    def details(self) -> dict[str, object]:
        """The members of ``lava_proxy`` that say who pays."""
        known = {
            "payer": self.payer,
            "connection_id": self.connection_id,
            "customer_id": self.customer_id,
            "meter": self.meter,
        }
        return {name: value for name, value in known.items() if value is not None}


# What of a refusal's headers goes on: they tell an SDK when to come back, and a person what to quote.
_KEPT = (b"retry-after", b"x-ratelimit-", b"x-lava-request-id")
UNSUPPORTED = frozenset({"forward_endpoint_not_supported", "forward_model_not_supported", "forward_model_invalid"})
# Whole words: a «parameter» is no meter.
_MENTIONS_LAVA = re.compile(
    r"(?<![a-z])(wallet|spend[ _-]?key|service[ _-]?key|meter|connection|customer)s?(?![a-z])", re.IGNORECASE
)
_SPEND_KEY = re.compile(r"(?<![a-z])(service|spend)[ _-]?key", re.IGNORECASE)
_LIMIT = re.compile(r"(?<![a-z])((limit|cap|budget)s?(?![a-z])|exceed)", re.IGNORECASE)
_RATE = re.compile(r"rate[ _-]?limit|per (second|minute)", re.IGNORECASE)  # over in a moment: no cap


@dataclass(slots=True)
class _Said:
    """What an error body says, read liberally."""

    message: str
    code: str
    shape: Literal["lava", "provider", "none"]


def _read(status: int, body: bytes) -> _Said:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace").strip()
        looks_like_page = text[:1] == "<"
        return _Said("" if looks_like_page else text[:500], "", "none")
    if isinstance(document, list) and document and isinstance(document[0], dict):
        document = document[0]  # Google's streams without alt=sse are arrays, also where they hold an error
    if not isinstance(document, dict):
        return _Said(document[:500] if isinstance(document, str) else "", "", "none")
    anthropic = document.get("type") == "error"
    error = document.get("error")
    if not isinstance(error, dict):
        said = next((text for text in (error, document.get("message"), document.get("detail")) if text), "")
        return _Said(said[:2000] if isinstance(said, str) else "", "", "provider" if anthropic else "none")
    raw_message, raw_code, said_status = error.get("message"), error.get("code"), error.get("status")
    message = raw_message[:2000] if isinstance(raw_message, str) else ""
    code = raw_code[:200] if isinstance(raw_code, str) else ""
    same_status = isinstance(said_status, int | float) and not isinstance(said_status, bool) and said_status == status
    if code.startswith("forward_") or same_status:
        return _Said(message, code, "lava")
    openai = "type" in error and "param" in error
    google = isinstance(said_status, str) and said_status.isupper()
    return _Said(message, code, "provider" if openai or google or anthropic else "none")


def from_answer(
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    payment: Payment,
    *,
    lava_request_id: str | None = None,
) -> Fault | None:
    """The fault that an answer of Lava or a provider means, or ``None`` where it passes to the client untouched.

    ``body`` is the decoded error body (or its beginning); it may be HTML, empty or anything else. Never raises. Secrets in
    the upstream's message are masked by the caller before it comes here.
    """
    said = _read(status, body)
    shape = said.shape
    from_lava = shape == "lava"
    owner: Owner = "lava" if from_lava else "provider"
    if shape == "none":
        if status not in (401, 402, 403):
            return None
        owner = "unknown"
        from_lava = not payment.byok
        # «In doubt» is a body without a shape: there the words of the message decide.
        if status != 401 and (_MENTIONS_LAVA.search(said.message) or _MENTIONS_LAVA.search(said.code)):
            from_lava, owner = True, "lava"
    if not from_lava and status not in (401, 402):
        return None
    details = payment.details()
    details["upstream_status"] = status
    if said.message:
        details["upstream_message"] = said.message
    if lava_request_id is not None:
        details["lava_request_id"] = lava_request_id
    keep = [(name, value) for name, value in headers if name.lower().startswith(_KEPT)]
    code, what, hint = _explain(status, said, payment, from_lava, owner)
    speaker = {"lava": "Lava", "provider": f'Provider "{payment.provider}"'}.get(owner, "The answer")
    quoted = f"{speaker} said: «{said.message}»" if said.message else ""
    # A target that Lava does not serve is always 400; everything else keeps the status it came with.
    fixed = None if code == "lava_unsupported_target" else status
    return Fault(code, what, hint, said=quoted, status=fixed, owner=owner, details=details, headers=keep)


def with_hint(body: bytes, hint: str) -> bytes:
    """A provider's error with our hint behind its own message; ``body`` itself where it has no message in a known place."""
    try:
        document = json.loads(body)
        message = document["error"]["message"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return body
    if not isinstance(message, str):
        return body
    document["error"]["message"] = f"{message} (lava-proxy: {hint})"
    return compact(document)


def _explain(status: int, said: _Said, payment: Payment, from_lava: bool, owner: Owner) -> tuple[str, str, str]:
    """Code, what is wrong and what to do, a sentence each; claims nothing that the answer and the configuration do not say."""
    if from_lava and status in (402, 403, 429) and _is_spend_limit(f"{said.code} {said.message}", status, payment):
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
    if said.code in UNSUPPORTED:
        return (
            "lava_unsupported_target",
            f'Lava does not serve this endpoint or model of provider "{payment.provider}".',
            "Use a model and an endpoint that Lava lists for this provider, or another provider.",
        )
    name = f" ({said.code})" if said.code else ""
    hint = "Change the request as Lava's message says." if said.message else "Check the request's model and parameters."
    if status == 429 or status >= 500:
        hint = "Wait and try again."
    return "lava_error", f"Lava answered {status}{name}.", hint


def _is_spend_limit(text: str, status: int, payment: Payment) -> bool:
    """Whether a refusal is the cap of a spend key (over until its next cycle), and not a rate limit (over in a moment)."""
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
    """The BYOK key of a request in words, and where it stands."""
    if payment.byok_from_client:
        return "the provider key that your tool sent", "in your tool"
    if payment.key_kind == "forward token":
        return "the provider key in your forward token", "in the forward token, by making a new one"
    return "your own provider key", f"under [projects.{payment.project}.byok]"


def _bring_own_key(payment: Payment) -> str:
    """How to pay the provider oneself: a project with a ready credential has no place for another key."""
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
    """What the credential that went to Lava said, in words."""
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
    """``conn_abc…123``: enough of an id to recognise it, as ids stand in screenshots and bug reports."""
    return identity if len(identity) < 11 else f"{identity[:8]}…{identity[-3:]}"
