"""``lava-proxy wallet``: the balance of the wallet behind the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.cli import account
from proxy.cli.terminal import Exit, Screen, put_json

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.lava import LavaSync


def run(config: Path | None, *, as_json: bool) -> int:
    """Show the balance and return the exit code."""

    def show(lava: LavaSync) -> int:
        from proxy.cli.rendering import plain
        from proxy.lava.money import dollars

        wallet = lava.wallet.retrieve()
        if as_json:
            put_json(plain(wallet))
            return Exit.OK
        Screen().pairs(
            [
                ("balance", dollars(wallet.balance) or "Lava does not say"),
                ("wallet", wallet.wallet_id),
                ("Lava", lava.base_url),
            ]
        )
        return Exit.OK

    return account.ask(config, show, as_json=as_json)
