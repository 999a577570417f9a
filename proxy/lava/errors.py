"""The errors of the client for Lava's account API.

::

    LavaError
    ├── MissingKey            no secret key was given
    ├── UnusableKey           … or one that cannot be sent (a ValueError, too)
    ├── Unreachable           no answer: `sent` is whether Lava may have received the request
    │   ├── TimedOut
    │   └── Interrupted       the answer is incomplete
    ├── UnexpectedAnswer      2xx, but not of the expected form
    │   └── NotJson           … not even JSON
    └── Refused               an answer that is not 2xx
        ├── BadRequest        400, 422
        │   └── Unsupported   … the gateway does not know this endpoint or model
        ├── Unauthorized      401
        ├── InsufficientBalance 402
        ├── Forbidden         403
        ├── NotFound          404
        ├── Conflict          409
        ├── RateLimited       429
        └── ServerError       5xx

Each has ``status``, ``code``, ``message``, ``request_id`` (Lava's, ``x-lava-request-id``) and ``retry_after`` (seconds),
each ``None`` if it is not known. None contains a secret: what Lava echoes is masked before.
"""

from __future__ import annotations


class LavaError(Exception):
    """The base of all errors. ``str()`` is one line for people."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        notes = ", ".join(note for note in (self.code, self.request_id and f"request {self.request_id}") if note)
        answer = f"Lava answered {self.status}: " if self.status is not None else ""
        return f"{answer}{self.message}{f' ({notes})' if notes else ''}"

    def __reduce__(self) -> tuple[object, ...]:
        # The method of Exception loses keyword arguments.
        return (_rebuild, (type(self), self.message, dict(self.__dict__)))


def _rebuild(kind: type[LavaError], message: str, fields: dict[str, object]) -> LavaError:
    made = kind(message)
    made.__dict__.update(fields)
    return made


class MissingKey(LavaError):
    """No secret key was given, in no argument and not in ``LAVA_SECRET_KEY``."""


class UnusableKey(LavaError, ValueError):
    """The secret key contains a character that no key has. Nothing was sent."""


class Unreachable(LavaError):
    """There is no complete answer. ``sent``: parts of the request may have reached Lava."""

    def __init__(
        self, message: str, *, sent: bool = False, request_id: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message, request_id=request_id, status=status)
        self.sent = sent


class TimedOut(Unreachable):
    """The time limit was exceeded."""


class Interrupted(Unreachable):
    """The connection broke during the answer."""


class UnexpectedAnswer(LavaError):
    """The status is 2xx, but the answer has another form. The action may have been performed."""


class NotJson(UnexpectedAnswer):
    """The status is 2xx, but the answer is not JSON."""


class Refused(LavaError):
    """Lava, a network in front of it or the provider refused the request. Redirects too: none is followed."""


class BadRequest(Refused):
    """Something in the request is wrong."""


class Unsupported(BadRequest):
    """The gateway supports no such endpoint or model."""


class Unauthorized(Refused):
    """The key or token is not valid."""


class InsufficientBalance(Refused):
    """A wallet, plan or limit is used up."""


class Forbidden(Refused):
    """The key may not do this."""


class NotFound(Refused):
    """The thing does not exist."""


class Conflict(Refused):
    """The thing exists already, or has changed meanwhile."""


class RateLimited(Refused):
    """Too many requests: 1000 a minute and key are documented."""


class ServerError(Refused):
    """Lava or the provider failed."""


def kind_of(status: int, code: str | None, message: str) -> type[Refused]:
    """Return the class for an answer of this status.

    The codes and words of *not supported* are those seen in public clients of the gateway.
    """
    if status == 400 and ((code or "").startswith("forward_") or "not supported" in message.lower()):
        return Unsupported
    by_status: dict[int, type[Refused]] = {
        400: BadRequest,
        401: Unauthorized,
        402: InsufficientBalance,
        403: Forbidden,
        404: NotFound,
        409: Conflict,
        422: BadRequest,
        429: RateLimited,
    }
    return by_status.get(status, ServerError if status >= 500 else Refused)
