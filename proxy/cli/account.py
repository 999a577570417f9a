"""A command that asks Lava's account API: the client for it, and every failure as one sentence and exit code 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.cli import loading
from proxy.cli.terminal import Exit, put_json, say
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
    """The client for scripts, on the way out that ``[upstream]`` describes."""
    from proxy.lava import LavaSync
    from proxy.lava.tokens import base_url_for

    if base_url == "auto":
        base_url = base_url_for(key if isinstance(key, str) else key.reveal())
    return LavaSync(
        key, base_url=base_url, ca_file=settings.upstream.ca_file, proxy=_way_out(settings, base_url), **options
    )


def ask(config: Path | None, work: Callable[[LavaSync], int], *, as_json: bool, keyless: bool = False) -> int:
    """Do ``work`` with the configured account and give its exit code, or 1 and why it could not be done.

    ``keyless`` work needs no key. Exits with 78 where the configuration cannot be used.
    """
    settings = loading.settings(config, as_json=as_json)
    key = settings.lava.secret_key
    if key is None and not keyless:
        return failed(NO_KEY, as_json=as_json, code="lava_key_missing")
    with client(settings, key or "none", settings.lava.base_url) as lava:
        try:
            return work(lava)
        except LavaError as error:
            return failed(sentence(error, lava.base_url), as_json=as_json, code=error.code, error=error)


def sentence(error: LavaError, base_url: str) -> str:
    """What went wrong and what to do, for a person."""
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


def failed(text: str, *, as_json: bool, code: str | None = None, error: LavaError | None = None) -> int:
    """Say why it could not be done (for scripts on standard output as well): exit code 1."""
    if as_json:
        document: dict[str, Any] = {"ok": False, "code": code, "error": text}
        if error is not None:
            document |= {"status": error.status, "request_id": error.request_id}
        put_json(document)
    say(f"lava-proxy: {text}" + ("" if text.endswith((".", "!", "?")) else "."))
    return Exit.FAILED


def misused(text: str) -> int:
    """Say what was wrong with the command line: exit code 2, as the command line library has it."""
    say(f"Error: {text}")
    return Exit.MISUSED


def _way_out(settings: Settings, base_url: str) -> str:
    """The outbound proxy for this address, as the daemon would take it; empty for none."""
    address = parse_address(base_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    return settings.upstream.proxy_for(address.scheme, address.host, port)
