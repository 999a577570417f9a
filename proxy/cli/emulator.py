"""``lava-proxy emulator``: the offline Lava alone."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Literal

from proxy.cli.terminal import Exit, Screen, put_json, say

if TYPE_CHECKING:
    from proxy.emulator import World


def run(port: int, environment: Literal["live", "test"] | None, *, as_json: bool) -> int:
    """Run it until SIGINT or SIGTERM; returns the exit code."""
    from proxy.emulator import World, serve_forever

    world = World.demo()
    world.environment = environment
    try:
        asyncio.run(serve_forever(world, port=port, ready=lambda url: _introduce(world, url, as_json=as_json)))
    except KeyboardInterrupt:  # Windows
        return Exit.OK
    except OSError as fault:
        if fault.errno == errno.EADDRINUSE:
            say(f"lava-proxy: port {port} is in use. Stop that program, or choose another port (--port N).")
            return Exit.UNAVAILABLE
        if fault.errno in (errno.EACCES, errno.EPERM):
            say(f"lava-proxy: port {port} may not be used by this user; choose one above 1023.")
            return Exit.FAILED
        if isinstance(fault, BrokenPipeError):
            raise
        say(f"lava-proxy: the emulator cannot listen: {os.strerror(fault.errno or 0)}.")
        return Exit.FAILED
    return Exit.OK


def _introduce(world: World, url: str, *, as_json: bool) -> None:
    base = url.rstrip("/")
    rejected, unfunded = next(iter(world.rejected_provider_keys)), next(iter(world.unfunded_provider_keys))
    if as_json:
        put_json(
            {
                "base_url": base,
                "secret_key": world.secret_key,
                "test_key": world.test_key,
                "spend_keys": world.spend_keys,
                "connections": {name: f"{each.balance:f}" for name, each in world.connections.items()},
                "meters": sorted(world.meters),
                "wallet_balance": f"{world.wallet_balance:f}",
                "rejected_provider_key": rejected,
                "unfunded_provider_key": unfunded,
            }
        )
        return
    screen = Screen()
    screen.line(f"An offline Lava listens on {base}", "title")
    screen.line("Its keys and its money are made up, and new at every start. Ctrl-C ends it.", "note")
    screen.line()
    screen.pairs(
        [
            ("secret key", world.secret_key),
            ("sandbox key", world.test_key),
            *((f"spend key {name}", key) for name, key in world.spend_keys.items()),
            ("provider key", f"{rejected}   (the provider rejects it)"),
            ("", f"{unfunded}   (its account is empty)"),
            ("wallet", f"${world.wallet_balance:f}, the merchant's"),
            *(("connection", f"{name}, ${each.balance:f}") for name, each in world.connections.items()),
            ("meters", ", ".join(sorted(world.meters))),
        ]
    )
    screen.title("Point lava-proxy at it, in another terminal:")
    screen.line(f"export LAVA_PROXY_LAVA__BASE_URL={base}", "code", indent=2)
    screen.line(f"export LAVA_SECRET_KEY={world.secret_key}", "code", indent=2)
    screen.line("lava-proxy serve", "code", indent=2)
    screen.title("Or log in to it by its own page, as to Lava:")
    screen.line(f"lava-proxy login --app {base.removesuffix('/v1')}", "code", indent=2)
