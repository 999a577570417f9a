"""Call Lava's account API for a command. Every failure becomes one sentence and exit code 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.cli import loading
from proxy.cli.terminal import failed
from proxy.lava.errors import LavaError, RateLimited, Unauthorized, UnexpectedAnswer, Unreachable, UnusableKey
from proxy.protocol.urls import parse_address
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.config.settings import Settings
    from proxy.lava import LavaSync
    from proxy.protocol.redaction import Secret

NO_KEY = "no Lava key is known: run `lava-proxy login`, or set LAVA_SECRET_KEY"


def client(settings: Settings, key: str | Secret, base_url: str, **options: Any) -> LavaSync:
    """Return the blocking client, with the certificates and the outbound proxy of ``[upstream]``."""
    from proxy.lava import LavaSync
    from proxy.lava.tokens import base_url_for

    if base_url == "auto":
        base_url = base_url_for(key if isinstance(key, str) else key.reveal())
    return LavaSync(
        key, base_url=base_url, ca_file=settings.upstream.ca_file, proxy=_outbound_proxy(settings, base_url), **options
    )


def ask(config: Path | None, work: Callable[[LavaSync], int], *, as_json: bool, keyless: bool = False) -> int:
    """Run `work` with the configured account. Return its exit code, or 1 after printing why it failed.

    ``keyless`` work needs no key. Exits with 78 if the configuration cannot be used.
    """
    settings = loading.settings(config, as_json=as_json)
    key = settings.lava.secret_key
    if key is None and not keyless:
        return failed(NO_KEY, as_json=as_json, code="lava_key_missing")
    with client(settings, key or "none", settings.lava.base_url) as lava:
        try:
            return work(lava)
        except LavaError as error:
            return refused(error, sentence(error, lava.base_url), as_json=as_json)


def refused(error: LavaError, text: str, *, as_json: bool) -> int:
    """Print why a call failed, for scripts with what Lava answered. Return exit code 1."""
    return failed(text, as_json=as_json, code=error.code, status=error.status, request_id=error.request_id)


def sentence(error: LavaError, base_url: str) -> str:
    """Return what went wrong and what to do."""
    if isinstance(error, (Unauthorized, UnusableKey)):
        return f"{error}. Run `lava-proxy login`, or check LAVA_SECRET_KEY and [lava]"
    if isinstance(error, RateLimited):
        when = f"in {counted(round(error.retry_after), 'second')}" if error.retry_after else "in a minute"
        return f"{error}. Lava allows 1000 requests a minute for a key: try again {when}"
    if isinstance(error, Unreachable):
        doubt = "; it is not known whether Lava has done what was asked" if error.sent else ""
        return f"Lava ({base_url}) cannot be reached: {error.message}{doubt}"
    if isinstance(error, UnexpectedAnswer):
        return f"Lava's answer cannot be used: {error.message}"
    return str(error)


def _outbound_proxy(settings: Settings, base_url: str) -> str:
    """Return the outbound proxy that the daemon would use for this address, or an empty string."""
    address = parse_address(base_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    return settings.upstream.proxy_for(address.scheme, address.host, port)
