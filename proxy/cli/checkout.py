"""``lava-proxy checkout``: a session in which a customer subscribes to a plan or buys a credit bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.cli import account
from proxy.cli.terminal import Exit, Screen, misused, put_json, say

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.lava import LavaSync


def run(
    config: Path | None,
    *,
    customer: str | None,
    plan: str | None,
    bundle: str | None,
    origin: str,
    old_names: bool,
    opens: bool,
    as_json: bool,
) -> int:
    """Create the session, print it or open its address, and return the exit code."""
    if (plan is None) == (bundle is None):
        return misused("give either --plan ID or --bundle ID")
    if bundle is not None and customer is None:
        return misused(
            "--bundle needs a customer: name the connection, as in `lava-proxy checkout CONNECTION --bundle ID`"
        )
    fields: dict[str, Any] = {
        "checkout_mode": "subscription" if plan is not None else "credit_bundle",
        "origin_url": origin,
        "connection_id" if old_names else "customer_id": customer,
        "subscription_config_id" if old_names else "plan_id": plan,
        "credit_bundle_id": bundle,
    }

    def make(lava: LavaSync) -> int:
        from proxy.cli import rendering
        from proxy.lava.resources import resolve

        given = {name: value for name, value in fields.items() if value is not None}
        row = resolve("checkout_sessions.create", list(given))
        session = lava.call(row, fields=given)
        shows = rendering.revealed(row)
        # No SDK has such a field; if Lava sends one, it is the address to open.
        address = next(
            (url for name, url in rendering.flat(session).items() if name != "origin_url" and _is_page(url)), None
        )
        if as_json:
            put_json(rendering.plain(session, shows))
        else:
            screen = Screen()
            rendering.show_one(screen, session, shows)
            if address is None:
                screen.line()
                screen.prose(
                    "Give checkout_session_token to Lava's checkout in your own page at that origin. Anyone who has it can "
                    "use this checkout.",
                    "note",
                )
        if opens:
            _open(address)
        return Exit.OK

    return account.ask(config, make, as_json=as_json)


def _is_page(value: object) -> bool:
    return isinstance(value, str) and value.startswith("https://")


def _open(address: str | None) -> None:
    from proxy.cli.browser import opened

    if address is None:
        say("Lava gave no address to open: the checkout opens in your own page, with the token.")
    elif not opened(address):
        say(f"No browser could be opened; the address is {address}")
