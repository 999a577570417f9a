"""The emulator's address space: which room answers where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import Route

from proxy.emulator import account, checkout, gateway, login

if TYPE_CHECKING:
    from proxy.emulator.state import World


def create_emulator(world: World) -> Starlette:
    """The ASGI application of an offline Lava over ``world``."""
    application = Starlette(
        routes=[
            *gateway.routes(world),
            *account.routes(world),
            *login.routes(world),
            *checkout.routes(world),
            Route("/{rest:path}", endpoint=gateway.Door(world, gateway.not_found)),
        ]
    )
    application.router.redirect_slashes = False
    return application
