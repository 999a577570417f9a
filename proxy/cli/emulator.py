"""``lava-proxy emulator``: the offline Lava alone."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
from typing import TYPE_CHECKING, Literal

from proxy.cli.terminal import Exit, Screen, put_json, say

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.emulator import World

_MAX_BYTES = 1 << 30


class _State:
    """The file with the state of an emulator."""

    def __init__(self, path: Path) -> None:
        # The file behind a link is replaced, not the link.
        self.path = path.resolve()
        self._reported = False

    def read(self) -> World:
        """Return the world in the file, or a new one if there is no file. Raises ``UnreadableReference``."""
        from proxy.config.references import UnreadableReference, read_file
        from proxy.emulator import World, keeping

        try:
            file = read_file(self.path, _MAX_BYTES)
            file.require_own()
            return keeping.decode(file.data)
        except FileNotFoundError:
            return World.demo()
        except keeping.NotOurs as fault:
            raise UnreadableReference(f"holds no state of an emulator, or a damaged one ({fault})") from None

    def write(self, data: bytes) -> None:
        """Replace the file. Raises ``OSError``."""
        from proxy.config.credentials import replace_file

        replace_file(self.path, data)

    def write_on(self, data: bytes) -> None:
        """Replace the file while the emulator runs. The first failure is reported, and the emulator continues."""
        try:
            self.write(data)
        except OSError as fault:
            if not self._reported:
                self._reported = True
                say(f"lava-proxy: {self.path} cannot be written ({_why(fault)}); what changes now may not be kept.")


def _why(fault: OSError) -> str:
    return os.strerror(fault.errno or 0)


def run(port: int, environment: Literal["live", "test"] | None, path: Path | None, *, as_json: bool) -> int:
    """Run the emulator until SIGINT or SIGTERM and return the exit code. `path` is the file of its state."""
    from proxy.config.references import UnreadableReference
    from proxy.emulator import World, keeping, serve_forever

    state = None if path is None else _State(path)
    try:
        world = World.demo() if state is None else state.read()
        if state is not None:
            # Before anything is shown, so that a copied key remains valid.
            state.write(keeping.encode(world))
    except UnreadableReference as fault:
        say(f"lava-proxy: {path} {fault}. Name another file, or remove this one to start anew.")
        return Exit.CONFIGURATION
    except OSError as fault:
        say(f"lava-proxy: {path} cannot be written ({_why(fault)}). Name a file in a folder of yours.")
        return Exit.FAILED
    world.environment = environment
    introduce = functools.partial(_introduce, world, state.path if state else None, as_json=as_json)
    try:
        asyncio.run(serve_forever(world, port=port, ready=introduce, write=state.write_on if state else None))
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
        say(f"lava-proxy: the emulator cannot listen: {_why(fault)}.")
        return Exit.FAILED
    return Exit.OK


def _introduce(world: World, state: Path | None, url: str, *, as_json: bool) -> None:
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
                "state": None if state is None else str(state),
            }
        )
        return
    screen = Screen()
    screen.line(f"An offline Lava listens on {base}", "title")
    lasting = "new at every start" if state is None else f"kept in {state}"
    screen.line(f"Its keys and its money are made up, and {lasting}. Ctrl-C ends it.", "note")
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
    screen.title("Or log in to it on its own page, as to Lava:")
    screen.line(f"lava-proxy login --app {base.removesuffix('/v1')}", "code", indent=2)
