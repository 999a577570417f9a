"""The login flow: the page in the browser, the code it sends to the program, the credentials for
the code.

``/auth/connect`` is SDK 11.2's page, ``/auth/cli`` that of 9.0 to 11.1. Without a generation, the
page decides which credentials a code gives.
"""

from __future__ import annotations

import re
import secrets
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from proxy.emulator import bodies, keys, pages
from proxy.emulator.endpoint import Handler, wrong_method
from proxy.emulator.exchange import EmulatedReply, json_reply, lava_error
from proxy.emulator.records import LoginCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.emulator.state import ReceivedRequest, World

CODE_LIFETIME_SECONDS = 60.0
_MAX_CODES = 1000


def _connect(legacy: bool, world: World, received: ReceivedRequest) -> EmulatedReply:
    """Show the page, or redirect its answer to the program. (Lava's own redirect after a refusal is
    not known: this is OAuth's.)
    """
    if received.method not in ("GET", "HEAD", "POST"):
        return wrong_method(received)
    clicked = received.method == "POST"
    text = received.body.decode("utf-8", "replace") if clicked else received.target.partition("?")[2]
    given = dict(parse_qsl(text, keep_blank_values=True))
    state, port = given.get("state", ""), given.get("port", "")
    if not state or len(state) > 1000 or not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > 65535:
        return pages.message("This link does not work", "It needs a state and a port. Start the login again.", 400)
    if not clicked:
        question = f"A program on this computer (port {port}) asks for keys to this Lava account."
        return pages.form(
            "Allow access?", question, received.path, {"state": state, "port": port}, "Allow", refuse="Deny"
        )
    if "refuse" in given:
        return _back("Denied", port, {"error": "access_denied", "state": state})
    code = secrets.token_urlsafe(24)
    world.pending.login_codes[code] = LoginCode(world.clock(), legacy)
    while len(world.pending.login_codes) > _MAX_CODES:
        del world.pending.login_codes[next(iter(world.pending.login_codes))]
    return _back("Allowed", port, {"code": code, "state": state})


def _back(title: str, port: str, query: dict[str, str]) -> EmulatedReply:
    reply = pages.message(title, "Going back to the program.", 303)
    reply.headers.append(("location", f"http://127.0.0.1:{port}/callback?{urlencode(query)}"))
    return reply


def _exchange(world: World, received: ReceivedRequest) -> EmulatedReply:
    """Return the credentials for a code, which works once and for 60 seconds."""
    if received.method != "POST":
        return wrong_method(received)
    document = bodies.document(received.body)
    code = document.get("code") if isinstance(document, dict) else None
    if not isinstance(code, str) or not code:
        return lava_error(400, "invalid_request", "code is missing.")
    known = world.pending.login_codes.pop(code, None)
    if known is None:
        return lava_error(400, "invalid_code", "The code is unknown or was used already.")
    if not 0 <= world.clock() - known.issued_at < CODE_LIFETIME_SECONDS:
        return lava_error(400, "expired_code", "The code has expired. Start the login again.")
    return json_reply(_credentials(world, known))


def _credentials(world: World, code: LoginCode) -> dict[str, Any]:
    """Return what the SDK's generation gets: a wallet key up to 10, an account id from 11.2 on."""
    generation, account = world.behaviour.generation, world.account
    with_wallet_key = code.legacy if generation is None else generation <= 10
    with_account = not code.legacy if generation is None else generation == 11 and not code.legacy
    secret = keys.issue_secret_key(world, "Login")
    found: dict[str, Any] = {}
    if with_wallet_key:
        wallet = keys.issue_wallet_key(world, "Login")
        found = {"wallet_key_id": wallet.key_id, "wallet_key": wallet.key}
    found |= {
        "wallet_id": account.wallet_id,
        "secret_key_id": secret.key_id,
        "secret_key": secret.key,
        "merchant_id": account.merchant_id,
    }
    return {**found, "account_id": account.account_id} if with_account else found


HANDLERS: Mapping[str, Handler] = {
    "/auth/connect": partial(_connect, False),
    "/auth/cli": partial(_connect, True),
    "/v1/auth/callback": _exchange,
}
