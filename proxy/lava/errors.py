"""What can go wrong between us and Lava's account API.

::

    LavaError
    ├── MissingKey            no secret key was given
    ├── UnusableKey           … or one that cannot be sent (a ValueError, too)
    ├── Unreachable           no answer: `sent` tells whether Lava may have seen the request
    │   ├── TimedOut
    │   └── Interrupted       the answer broke off
    ├── UnexpectedAnswer      2xx, but not what it should be
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

Every one has ``status``, ``code``, ``message``, ``request_id`` (Lava's, ``x-lava-request-id``) and ``retry_after``
(seconds), each ``None`` where it is not known. None holds a secret: what Lava echoes is masked before it gets here.
"""

from __future__ import annotations


class LavaError(Exception):
    """Any of them. ``str()`` is one line for people."""

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
        # Exception's own forgets what was given by keyword.
        return (_rebuild, (type(self), self.message, dict(self.__dict__)))


def _rebuild(kind: type[LavaError], message: str, fields: dict[str, object]) -> LavaError:
    made = kind(message)
    made.__dict__.update(fields)
    return made


class MissingKey(LavaError):
    """No secret key was given, in no argument and not in ``LAVA_SECRET_KEY``."""


class UnusableKey(LavaError, ValueError):
    """The secret key holds what no key has: it was sent nowhere."""


class Unreachable(LavaError):
    """No whole answer came. ``sent``: some of the request may have reached Lava."""

    def __init__(
        self, message: str, *, sent: bool = False, request_id: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message, request_id=request_id, status=status)
        self.sent = sent


class TimedOut(Unreachable):
    """Not in time."""


class Interrupted(Unreachable):
    """The answer broke off in the middle."""


class UnexpectedAnswer(LavaError):
    """Lava agreed, but its answer is not what this call answers. What was asked for may have been done."""


class NotJson(UnexpectedAnswer):
    """Lava agreed, but the answer is not JSON."""


class Refused(LavaError):
    """Lava (or who stands before it, or the provider behind it) said no. Redirects too: none is followed."""


class BadRequest(Refused):
    """Something in the request is wrong."""


class Unsupported(BadRequest):
    """The gateway supports no such endpoint or model."""


class Unauthorized(Refused):
    """The key or token is not good."""


class InsufficientBalance(Refused):
    """A wallet, plan or limit is used up."""


class Forbidden(Refused):
    """The key may not do this."""


class NotFound(Refused):
    """There is no such thing."""


class Conflict(Refused):
    """It exists already, or changed meanwhile."""


class RateLimited(Refused):
    """Too many requests: 1000 a minute and key are documented."""


class ServerError(Refused):
    """Lava or the provider failed."""


def kind_of(status: int, code: str | None, message: str) -> type[Refused]:
    """The class for an answer of this status.

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
