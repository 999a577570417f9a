"""Read an answer as a record or as a typed error. Pure. Any answer of a network in front of Lava is handled."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from proxy.lava.errors import LavaError, NotJson, UnexpectedAnswer, kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from proxy.lava.records import ApiRecord
    from proxy.protocol.redaction import Redactor

    R = TypeVar("R", bound=ApiRecord)

SILENT = ", without a reason"
"""The end of the message for a refusal without one, which any network in front of Lava may have sent."""

_MAX_MESSAGE = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class ApiReply:
    """A complete answer. ``headers`` have lower-case names, the last value of each."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """2xx."""
        return 200 <= self.status < 300

    @property
    def request_id(self) -> str | None:
        """Lava's id of the request."""
        return self.headers.get("x-lava-request-id") or None


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def document(body: bytes) -> Any:
    """Return the value of a JSON document; numbers with a fraction are ``Decimal``. Raises ``ValueError``."""
    try:
        return json.loads(body, parse_float=Decimal, parse_constant=_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ArithmeticError:
        raise ValueError("a number is too large") from None


def read(kind: type[R], reply: ApiReply, redactor: Redactor, now: float) -> R:
    """Return the answer as a record. Raises a ``LavaError``."""
    if not reply.ok:
        raise refusal(reply, redactor, now)
    about: dict[str, Any] = {"status": reply.status, "request_id": _request_id(reply, redactor)}
    if not reply.body.strip():
        value: Any = {}  # 204, or a 200 without a body
    else:
        try:
            value = document(reply.body)
        except ValueError:
            raise NotJson(f"{_description(reply)} instead of JSON", **about) from None
    fields = kind.model_fields
    if isinstance(value, list) and "data" in fields:
        value = {"data": value}
    # The reference of 2025 wraps every answer in this way; observed answers are not wrapped.
    elif (
        isinstance(value, dict)
        and value.keys() == {"data"}
        and "data" not in fields
        and isinstance(value["data"], dict)
    ):
        value = value["data"]
    try:
        return kind.model_validate(value)
    except ValidationError as exc:
        # Names of fields only: the values may be secrets.
        where = ", ".join(sorted({".".join(map(str, each["loc"])) or "the whole" for each in exc.errors()})[:5])
        raise UnexpectedAnswer(f"the answer is no proper {kind.__name__.partition('[')[0]}: {where}", **about) from None


def refusal(reply: ApiReply, redactor: Redactor, now: float) -> LavaError:
    """Return the error for an answer other than 2xx. `now` is the time, in seconds since 1970."""
    code, message = _code_and_message(reply)
    message = _clean(redactor.text(message)) if message else ""
    code = _clean(redactor.text(code)) if code else None
    kind = kind_of(reply.status, code, message)
    if 300 <= reply.status < 400:
        message = "a redirect, which is not followed: is base_url right?"
    return kind(
        message or _description(reply) + SILENT,
        status=reply.status,
        code=code or None,
        request_id=_request_id(reply, redactor),
        retry_after=retry_after(reply, now),
    )


def _request_id(reply: ApiReply, redactor: Redactor) -> str | None:
    return redactor.text(reply.request_id) if reply.request_id is not None else None


def retry_after(reply: ApiReply, now: float) -> float | None:
    """Return the seconds to wait by ``Retry-After`` (seconds or a date), for 429 also by ``X-RateLimit-Reset`` (seconds
    since 1970, by Lava's reference)."""
    value = reply.headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    if value:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - now)
        except (ValueError, TypeError, OverflowError):
            return None
    reset = reply.headers.get("x-ratelimit-reset", "").strip()
    if reply.status == 429 and re.fullmatch(r"[0-9]{1,12}", reset):
        return max(0.0, int(reset) - now)
    return None


def _code_and_message(reply: ApiReply) -> tuple[str | None, str | None]:
    """Return code and message of an error body: ``error`` is an object or a text, or both are at the top level."""
    try:
        value = document(reply.body)
    except ValueError:
        return None, None if _is_page(reply) else reply.body[: 4 * _MAX_MESSAGE].decode("utf-8", "replace").strip()
    if isinstance(value, str):
        return None, value
    if not isinstance(value, dict):
        return None, None
    error = value.get("error", value)
    if isinstance(error, str):
        return _text(value.get("code")), error if not _text(value.get("message")) else _text(value.get("message"))
    if not isinstance(error, dict):
        error = value
    code = _text(error.get("code")) or _text(error.get("type"))
    return code, _text(error.get("message")) or _text(error.get("error"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _is_page(reply: ApiReply) -> bool:
    return "html" in reply.headers.get("content-type", "").lower() or reply.body.lstrip()[:1] == b"<"


def _description(reply: ApiReply) -> str:
    if not reply.body.strip():
        return "an empty answer"
    return "a web page (some network in front of Lava, perhaps)" if _is_page(reply) else "an answer"


def _clean(text: str) -> str:
    text = _CONTROL.sub(" ", text).strip()
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "…"
