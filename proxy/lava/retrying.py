"""Whether a failed call is retried, and when. Pure.

A call is retried if it cannot have had an effect (nothing was sent, or 429), or if it may be repeated: GETs, and POSTs with
an ``Idempotency-Key``, which Lava's reference says every POST supports. No other call is: the repetition of a successful
DELETE would get a 404.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.lava.errors import Interrupted, LavaError, Refused, Unreachable


@dataclass(frozen=True, slots=True)
class Patience:
    """At most ``retries`` after the first try. The wait before each is random, up to ``backoff`` seconds, doubled each time,
    at most ``longest``. With a ``Retry-After`` above ``longest`` the call is not retried."""

    retries: int = 2
    backoff: float = 0.5
    longest: float = 20.0

    def wait(self, error: LavaError, tries: int, repeatable: bool, luck: float) -> float | None:
        """Return the seconds until the next try, or None for no further one, after `tries`. `luck` is in [0, 1)."""
        if tries > self.retries or not _may(error, repeatable):
            return None
        own: float = min(self.longest, self.backoff * 2.0 ** (tries - 1)) * luck
        asked = error.retry_after
        if asked is None:
            return own
        # Slightly later, so that clients with the same Retry-After do not all retry at once.
        return None if asked > self.longest else asked + min(own, 1.0)


def _may(error: LavaError, repeatable: bool) -> bool:
    if isinstance(error, Unreachable):
        return repeatable or not (error.sent or isinstance(error, Interrupted))
    if not isinstance(error, Refused) or error.status is None:
        return False
    return error.status == 429 or (repeatable and error.status in (500, 502, 503, 504))
