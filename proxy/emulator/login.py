"""The login flow: the page in the browser, the code it sends to the waiting program, the credentials for the code.

``/auth/connect`` is SDK 11.2's page, ``/auth/cli`` that of 9.0 to 11.1; whose credentials a code gives follows from the page
it came from, unless the world is of one generation.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from starlette.routing import Route

from proxy.emulator import bodies, keys, pages
from proxy.emulator.exchange import EmulatedReply, json_reply, lava_error
from proxy.emulator.faults import FaultPlan
from proxy.emulator.gateway import Door
from proxy.emulator.records import LoginCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.emulator.state import ReceivedRequest, World

CODE_LIFE_S = 60.0
_KEPT_CODES = 1000


def routes(world: World) -> list[Route]:
    """The pages, below the host itself, and the exchange, below ``/v1``."""
    return [
        Route("/auth/connect", endpoint=Door(world, _page(legacy=False))),
        Route("/auth/cli", endpoint=Door(world, _page(legacy=True))),
        Route("/v1/auth/callback", endpoint=Door(world, _exchange)),
    ]


def _page(*, legacy: bool) -> Callable[[World, ReceivedRequest], tuple[EmulatedReply, FaultPlan]]:
    return lambda world, received: (_connect(world, received, legacy), FaultPlan())


def _connect(world: World, received: ReceivedRequest, legacy: bool) -> EmulatedReply:
    """The question, and after a click on its answer the way back to the program that asked. (How Lava's own page tells of a
    refusal is not known: this one does as OAuth has it.)"""
    if received.method not in ("GET", "HEAD", "POST"):
        return lava_error(405, "method_not_allowed", f"{received.method} is not served here.")
    clicked = received.method == "POST"
    text = received.body.decode("utf-8", "replace") if clicked else received.target.partition("?")[2]
    given = dict(parse_qsl(text, keep_blank_values=True))
    state, port = given.get("state", ""), given.get("port", "")
    if not state or len(state) > 1000 or not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > 65535:
        return pages.message("This link does not work", "It needs a state and a port. Start the login again.", 400)
    if not clicked:
        ask = f"A program on this computer (port {port}) asks for keys to this Lava account."
        return pages.form("Allow access?", ask, received.path, {"state": state, "port": port}, "Allow", refuse="Deny")
    if "refuse" in given:
        return _back("Denied", port, {"error": "access_denied", "state": state})
    code = secrets.token_urlsafe(24)
    world.login_codes[code] = LoginCode(world.clock(), legacy)
    while len(world.login_codes) > _KEPT_CODES:
        del world.login_codes[next(iter(world.login_codes))]
    return _back("Allowed", port, {"code": code, "state": state})


def _back(title: str, port: str, told: dict[str, str]) -> EmulatedReply:
    reply = pages.message(title, "Going back to the program.", 303)
    reply.headers.append(("location", f"http://127.0.0.1:{port}/callback?{urlencode(told)}"))
    return reply


def _exchange(world: World, received: ReceivedRequest) -> tuple[EmulatedReply, FaultPlan]:
    """``POST auth/callback``: no credential but the code, which works once and for 60 seconds."""
    if received.method != "POST":
        return lava_error(405, "method_not_allowed", f"{received.method} is not served here."), FaultPlan()
    document = bodies.document(received.body)
    code = document.get("code") if isinstance(document, dict) else None
    if not isinstance(code, str) or not code:
        return lava_error(400, "invalid_request", "code is missing."), FaultPlan()
    known = world.login_codes.pop(code, None)
    if known is None:
        return lava_error(400, "invalid_code", "The code is unknown or was used already."), FaultPlan()
    if not 0 <= world.clock() - known.issued_at < CODE_LIFE_S:
        return lava_error(400, "expired_code", "The code has expired. Start the login again."), FaultPlan()
    return json_reply(_credentials(world, known)), FaultPlan()


def _credentials(world: World, code: LoginCode) -> dict[str, Any]:
    """What the SDK's generation gets: a wallet key up to 10, an account id from 11.2 on."""
    generation = world.generation
    with_wallet_key = code.legacy if generation is None else generation <= 10
    with_account = not code.legacy if generation is None else generation == 11 and not code.legacy
    secret = keys.issue_secret_key(world, "Login")
    found: dict[str, Any] = {}
    if with_wallet_key:
        wallet = keys.issue_wallet_key(world, "Login")
        found = {"wallet_key_id": wallet.key_id, "wallet_key": wallet.key}
    found |= {
        "wallet_id": world.wallet_id,
        "secret_key_id": secret.key_id,
        "secret_key": secret.key,
        "merchant_id": world.merchant_id,
    }
    return {**found, "account_id": world.account_id} if with_account else found
