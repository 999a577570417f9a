"""Whether a failed call is made again, and when. Pure.

Again goes what cannot have had an effect (nothing was sent, or 429: refused unread), and what may have one twice: GETs, and
POSTs with an ``Idempotency-Key``, which Lava's reference says every POST supports. Nothing else: a DELETE that worked and is
repeated would be told 404.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.lava.errors import Interrupted, LavaError, Refused, Unreachable


@dataclass(frozen=True, slots=True)
class Patience:
    """``retries`` after the first try; the wait before each is random, up to ``backoff`` seconds, doubled each time, at most
    ``longest``. A ``Retry-After`` above ``longest`` is not waited for."""

    retries: int = 2
    backoff: float = 0.5
    longest: float = 20.0

    def wait(self, error: LavaError, tries: int, repeatable: bool, luck: float) -> float | None:
        """Seconds until the next try, ``None`` for no further one. ``tries`` were made, ``luck`` is in [0, 1)."""
        if tries > self.retries or not _may(error, repeatable):
            return None
        own: float = min(self.longest, self.backoff * 2.0 ** (tries - 1)) * luck
        asked = error.retry_after
        if asked is None:
            return own
        # A little later than asked, so that all who were told the same do not come at once.
        return None if asked > self.longest else asked + min(own, 1.0)


def _may(error: LavaError, repeatable: bool) -> bool:
    if isinstance(error, Unreachable):
        return repeatable or not (error.sent or isinstance(error, Interrupted))
    if not isinstance(error, Refused) or error.status is None:
        return False
    return error.status == 429 or (repeatable and error.status in (500, 502, 503, 504))
