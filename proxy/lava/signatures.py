"""Verify that the event of a webhook is Lava's, by the three documented signatures.

| when | header | value |
|---|---|---|
| now | ``X-Webhook-Signature`` | hex HMAC-SHA256 of the body |
| 2025 | ``x-lava-signature`` | the same |
| the SDK's "flex" build | ``x-lava-signature`` | ``t=SECONDS,v1=HEX``: HMAC of ``SECONDS.BODY`` |

Only the last one contains a time, so that an old event sent again is refused; with the others, keep the ids of handled events.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from typing import TYPE_CHECKING

from pydantic import ValidationError

from proxy.lava.errors import LavaError
from proxy.lava.records import WebhookEvent
from proxy.lava.replies import document
from proxy.protocol.redaction import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TOLERANCE = 300.0
"""The greatest difference between a signature's time and now, in seconds."""

_HEADERS = ("x-webhook-signature", "x-lava-signature")
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_SECONDS = re.compile(r"[0-9]{1,12}")


class BadSignature(LavaError):
    """The event is not Lava's, or too old: do not act on it, answer 401."""


def verify_webhook(
    body: bytes,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    secret: str | Secret,
    *,
    tolerance: float = TOLERANCE,
    now: float | None = None,
) -> WebhookEvent:
    """Check the signature, in constant time, and return the event in `body` (the raw bytes as they were received).

    ``headers`` are the request's, in any spelling of their names; ``secret`` is the webhook's ``webhook_secret``; ``now`` is
    for tests. Raises ``BadSignature``; ``ValueError`` for a signed body that is no event, and for an empty secret.
    """
    key = (secret.reveal() if isinstance(secret, Secret) else secret).encode("utf-8")
    if not key:
        raise ValueError("the webhook's secret is empty")
    pairs = headers.items() if hasattr(headers, "items") else headers
    given = [(name.lower(), value.strip()) for name, value in pairs if name.lower() in _HEADERS]
    if not given:
        raise BadSignature("the event carries no signature (X-Webhook-Signature or x-lava-signature)")
    if len(given) > len(_HEADERS):
        raise BadSignature("the event carries too many signatures")
    # One valid signature is enough: making it requires the secret.
    faults = [fault for name, value in given if (fault := _fault(name, value, body, key, tolerance, now)) is not None]
    if len(faults) == len(given):
        raise BadSignature(faults[0])
    try:
        return WebhookEvent.model_validate(document(body))
    except (ValueError, ValidationError):
        raise ValueError("the body is signed, but it is no event") from None


def _fault(name: str, value: str, body: bytes, key: bytes, tolerance: float, now: float | None) -> str | None:
    """Return what is wrong with one signature, or None if it is valid."""
    if name == "x-lava-signature" and "=" in value:
        parts = [part.strip().partition("=") for part in value.split(",", 16)]
        times = [each for label, _, each in parts if label == "t"]
        signatures = [each for label, _, each in parts if label == "v1"]
        if len(times) != 1 or not _SECONDS.fullmatch(times[0]) or not signatures:
            return "the signature is malformed"
        if not _matches(signatures, times[0].encode("ascii") + b"." + body, key):
            return "the signature does not match"
        # After the comparison, so that the time is checked only for a valid signature.
        if abs((time.time() if now is None else now) - int(times[0])) > tolerance:
            return "the signature is too old, or our clock is wrong"
        return None
    return None if _matches([value], body, key) else "the signature does not match"


def _matches(signatures: list[str], signed: bytes, key: bytes) -> bool:
    expected = hmac.new(key, signed, hashlib.sha256).digest()
    good = False
    for signature in signatures:
        # bytes.fromhex would skip spaces.
        if _HEX.fullmatch(signature):
            good |= hmac.compare_digest(bytes.fromhex(signature), expected)
    return good
