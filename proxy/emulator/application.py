"""The emulator's address space: which room answers where. A new room (account API, login pages) adds its routes here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import Route

from proxy.emulator import gateway

if TYPE_CHECKING:
    from proxy.emulator.state import World


def create_emulator(world: World) -> Starlette:
    """The ASGI application of an offline Lava over ``world``."""
    application = Starlette(
        routes=[
            *gateway.routes(world),
            Route("/{rest:path}", endpoint=gateway.Door(world, gateway.not_found)),
        ]
    )
    application.router.redirect_slashes = False
    return application
