"""Lava's account API and gateway from Python: ``from proxy.lava import Lava``; see ``docs/lava.md``.

``resources`` is the table of all actions; ``wire`` writes a call, ``transport`` sends it, ``replies`` reads the answer as
one of the ``records`` or raises one of the ``errors``. ``client`` combines them, ``blocking`` is the same client for
scripts, ``signatures`` checks the events of webhooks.

Names are imported on first use, so that the table alone (for the command line's help) does not load the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.lava.blocking import LavaSync
    from proxy.lava.client import Lava
    from proxy.lava.errors import (
        BadRequest,
        Conflict,
        Forbidden,
        InsufficientBalance,
        Interrupted,
        LavaError,
        MissingKey,
        NotFound,
        NotJson,
        RateLimited,
        Refused,
        ServerError,
        TimedOut,
        Unauthorized,
        UnexpectedAnswer,
        Unreachable,
        Unsupported,
        UnusableKey,
    )
    from proxy.lava.resources import UnknownName
    from proxy.lava.signatures import BadSignature, verify_webhook

__all__ = [
    "BadRequest",
    "BadSignature",
    "Conflict",
    "Forbidden",
    "InsufficientBalance",
    "Interrupted",
    "Lava",
    "LavaError",
    "LavaSync",
    "MissingKey",
    "NotFound",
    "NotJson",
    "RateLimited",
    "Refused",
    "ServerError",
    "TimedOut",
    "Unauthorized",
    "UnexpectedAnswer",
    "UnknownName",
    "Unreachable",
    "Unsupported",
    "UnusableKey",
    "verify_webhook",
]

_PLACES = {
    "BadSignature": "signatures",
    "Lava": "client",
    "LavaSync": "blocking",
    "UnknownName": "resources",
    "verify_webhook": "signatures",
}


if not TYPE_CHECKING:  # a type checker would accept every name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_PLACES.get(name, 'errors')}"), name)
