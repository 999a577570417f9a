"""``lava-proxy login``, ``logout`` and ``whoami``: get keys through the browser, and keep them for later commands.

The flow is that of Lava's own SDK: the user logs in at ``{app}/auth/connect``, the browser returns to a port of this
command with a code, and the code is exchanged, once and within 60 seconds, for keys.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from proxy.cli import account, loading, payers
from proxy.cli.callback import Callback, LoginError
from proxy.cli.terminal import Exit, Screen, failed, misused, put_json, say
from proxy.config import credentials
from proxy.config.credentials import Login
from proxy.config.references import UnreadableReference
from proxy.lava.errors import LavaError, Refused
from proxy.lava.tokens import PRODUCTION, SANDBOX, base_url_for
from proxy.protocol.urls import is_loopback, parse_address

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.config.credentials import Kept
    from proxy.config.settings import Settings

APP = "https://www.lava.so"
LIMIT_S = 120.0
_AGAIN = "A code works once and for 60 seconds: start again with `lava-proxy login`"


def run(
    config: Path | None,
    *,
    app: str = APP,
    page: str = "connect",
    code: str | None = None,
    browser: bool = True,
    keyring: bool = True,
    as_json: bool = False,
    limit: float = LIMIT_S,
) -> int:
    """Log in and return the exit code. With `code` (``-``: from standard input) no browser is opened.

    ``page`` is ``connect`` (SDK 11.2) or ``cli`` (9.0 to 11.1); ``limit`` is in seconds.
    """
    settings = loading.settings(config, as_json=as_json)
    try:
        base, api = places(app)
    except ValueError as error:
        return misused(f"--app {error}")
    if credentials.place(os.environ) is None:
        return failed("there is no home directory to keep a login in: set HOME", as_json=as_json)
    try:
        got = _by_browser(base, page, browser, limit, as_json) if code is None else _pasted(code)
        kept = credentials.keep(_exchanged(settings, got, api), os.environ, keyring=keyring)
    except (LoginError, UnreadableReference) as error:
        return failed(f"not logged in: {error}", as_json=as_json)
    except OSError as error:
        what = os.strerror(error.errno or 0)
        return failed(f"not logged in: {error.filename or 'the login'}: {what}", as_json=as_json)
    return _show_login(config, kept, as_json, new=True)


def places(app: str) -> tuple[str, str]:
    """Return the app's address without a trailing slash, and the API that belongs to it. Raises ``ValueError``."""
    address = parse_address(app)
    local = is_loopback(address.host)
    if address.scheme != "https" and not local:
        raise ValueError("must be https: http is for loopback hosts only")
    base = address.base()
    if local:
        parts = urlsplit(base)
        return base, f"{parts.scheme}://{parts.netloc}/v1"
    return base, SANDBOX if "sandbox" in address.host else PRODUCTION


def _by_browser(base: str, page: str, browser: bool, limit: float, as_json: bool) -> str:
    """Return the code of a login in the browser. Raises ``LoginError``."""
    from proxy.cli.browser import opened

    state = secrets.token_hex(16)
    try:
        callback = Callback(
            state, lambda port: f"{base}/auth/{page}?{urlencode({'state': state, 'port': port})}", leads=browser
        )
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise LoginError(f"no port of 127.0.0.1 can be listened on for the browser ({why}); use --code") from None
    with callback:
        url = callback.page
        found = browser and opened(callback.start)
        lead = "A browser opens. If it does not, open this address:" if found else "Open this address in a browser:"
        if as_json:
            say(f"{lead} {url}")
        else:
            screen = Screen()
            screen.line(lead)
            screen.line(url, "code", indent=2)
            other = (
                "On another computer the browser ends at an address that it cannot open. Within 60 seconds, give it to"
            )
            screen.prose(other, "note")
            screen.line("lava-proxy login" + ("" if base == APP else f" --app {base}") + " --code -", "code", indent=2)
        return callback.wait(limit)


def _pasted(code: str) -> str:
    """Return the code from `code`: a code, or the address that contains it. Raises ``LoginError``."""
    if code == "-":
        import sys

        if sys.stdin is None:
            raise LoginError("there is no standard input to read a code from")
        if sys.stdin.isatty():
            say("Paste the code, or the address that the browser ended at:")
        code = sys.stdin.readline(10_000)
    code = code.strip()
    if "://" in code or code.startswith("/callback?"):
        given = parse_qs(urlsplit(code).query).get("code", [])
        if len(given) != 1:
            raise LoginError("that address contains no code" if not given else "that address contains two codes")
        code = given[0]
    if not code:
        raise LoginError("no code was given")
    return code


def _exchanged(settings: Settings, code: str, api: str) -> Login:
    """Return the keys for a code. Raises ``LoginError``."""
    # Not idempotent, so not retried: a code is valid once, and a second try would hide the result of the first.
    with account.client(settings, "none", api, idempotency=False) as lava:
        try:
            given = lava.auth.exchange_code(code=code)
        except Refused as error:
            if error.status in (400, 401, 403, 404, 410, 422):
                raise LoginError(f"Lava does not take the code: {error.message.rstrip('.')}. {_AGAIN}") from None
            raise LoginError(account.sentence(error, api)) from None
        except LavaError as error:
            raise LoginError(account.sentence(error, api)) from None
    key = given.secret_key.reveal()
    if not key.isascii() or not key.isprintable() or not key:
        raise LoginError("Lava's answer contains no usable key")
    return Login(
        given.secret_key,
        "auto" if base_url_for(key) == api else api,
        given.merchant_id,
        given.account_id,
        given.wallet_id,
        given.secret_key_id,
        given.wallet_key_id,
        given.wallet_key,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


def logout(config: Path | None, *, revoke: bool = False, as_json: bool = False) -> int:
    """Forget the login, and with `revoke` delete its key at Lava first. Return the exit code."""
    try:
        kept = credentials.find(os.environ)
    except UnreadableReference:
        kept = None  # an unreadable login can be removed
    key_id = kept.login.secret_key_id if kept is not None else None
    if revoke:
        if kept is None or key_id is None:
            return failed("there is no login whose key could be revoked", as_json=as_json)
        settings = loading.settings(config, as_json=as_json)
        with account.client(settings, kept.login.secret_key, kept.login.base_url) as lava:
            try:
                lava.secret_keys.delete(key_id)
            except LavaError as error:
                text = f"still logged in, the key could not be revoked: {account.sentence(error, lava.base_url)}"
                return account.refused(error, text, as_json=as_json)
    try:
        was = credentials.forget(os.environ)
    except UnreadableReference as error:
        return failed(str(error), as_json=as_json)
    except OSError as error:
        return failed(f"still logged in: {error.filename}: {os.strerror(error.errno or 0)}", as_json=as_json)
    if as_json:
        put_json({"ok": True, "was_logged_in": was, "revoked": revoke, "secret_key_id": key_id})
        return Exit.OK
    screen = Screen()
    if not was:
        screen.line("There was no login.")
        return Exit.OK
    screen.line("Logged out: the key is revoked and forgotten." if revoke else "Logged out: the key is forgotten here.")
    if not revoke:
        which = f" ({key_id})" if key_id else ""
        screen.line(f"At Lava it{which} stays good until it is deleted there: in the dashboard, or by", "note")
        screen.line(
            "`lava-proxy api secret_keys delete` with another key; next time, `lava-proxy logout --revoke`.", "note"
        )
    return Exit.OK


def whoami(config: Path | None, *, as_json: bool = False) -> int:
    """Show the login. Return the exit code: 1 if there is none."""
    try:
        kept = credentials.find(os.environ)
    except UnreadableReference as error:
        return failed(f"the login cannot be used: {error}", as_json=as_json, code="unreadable")
    if kept is None:
        other = (
            "LAVA_SECRET_KEY is set, and used" if os.environ.get("LAVA_SECRET_KEY") else "`lava-proxy login` does it"
        )
        return failed(f"not logged in ({other})", as_json=as_json, code="not_logged_in")
    return _show_login(config, kept, as_json)


def _show_login(config: Path | None, kept: Kept, as_json: bool, *, new: bool = False) -> int:
    """Show the login, and whether the configuration uses it."""
    report = _report(kept)
    in_use, why_not = _in_use(config, kept)
    if as_json:
        put_json({"ok": True, **report, "in_use": in_use})
        return Exit.OK
    screen = Screen()
    if new:
        screen.line("Logged in.", "good")
    _show(screen, report)
    if why_not:
        say(f"Note: {why_not}.")
    elif new and in_use:
        screen.line(
            "The daemon (`lava-proxy serve`) and every other command find this key by themselves; a daemon that", "note"
        )
        screen.line("runs already does after a restart or a SIGHUP.", "note")
    return Exit.OK


def _report(kept: Kept) -> dict[str, Any]:
    """Return the login for scripts, without secrets."""
    login = kept.login
    return {
        "secret_key": payers.masked(login.secret_key.reveal()),
        "secret_key_id": login.secret_key_id,
        "merchant_id": login.merchant_id,
        "account_id": login.account_id,
        "wallet_id": login.wallet_id,
        "wallet_key": payers.masked(login.wallet_key.reveal()) if login.wallet_key is not None else None,
        "wallet_key_id": login.wallet_key_id,
        "base_url": base_url_for(login.secret_key.reveal()) if login.base_url == "auto" else login.base_url,
        "logged_in_at": login.logged_in_at,
        "kept": kept.where,
        "path": str(kept.path),
    }


def _show(screen: Screen, report: dict[str, Any]) -> None:
    where = "the system's keyring" if report["kept"] == "keyring" else f"{report['path']} (mode 0600)"
    words = {"secret_key_id": "key id", "secret_key": "secret key", "wallet_key_id": "wallet key id"}
    rows = [(words.get(name, name.replace("_id", "").replace("_", " ")), value) for name, value in report.items()]
    shown = [(name, str(value)) for name, value in rows if value and name not in ("kept", "path", "base url")]
    screen.pairs([*shown, ("Lava", report["base_url"]), ("kept in", where)])


def _in_use(config: Path | None, kept: Kept) -> tuple[bool | None, str]:
    """Return whether the configuration uses this key (None: not known), and why not."""
    from proxy.config.settings import ConfigError, load

    try:
        used = load(config).lava.secret_key
    except ConfigError:
        return None, "the configuration cannot be used, so no command finds this key: see `lava-proxy check`"
    if used == kept.login.secret_key:
        return True, ""
    if os.environ.get("LAVA_SECRET_KEY") and used is not None and used.reveal() == os.environ["LAVA_SECRET_KEY"]:
        return False, "LAVA_SECRET_KEY is set and takes precedence over this login: unset it to use the login"
    return False, "the configuration names another key under [lava], which takes precedence over this login"
