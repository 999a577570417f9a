"""The emulator's ASGI application: all its routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import Route

from proxy.emulator import account, checkout, gateway, login
from proxy.emulator.endpoint import EmulatorEndpoint, not_found

if TYPE_CHECKING:
    from proxy.emulator.state import World


def create_emulator(world: World) -> Starlette:
    """Return the ASGI application of an offline Lava over ``world``."""
    handlers = {
        **gateway.HANDLERS,
        **account.HANDLERS,
        **login.HANDLERS,
        **checkout.HANDLERS,
        "/{rest:path}": not_found,
    }
    routes = [Route(path, endpoint=EmulatorEndpoint(world, handler)) for path, handler in handlers.items()]
    application = Starlette(routes=routes)
    application.router.redirect_slashes = False
    return application
