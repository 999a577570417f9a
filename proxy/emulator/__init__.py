"""The offline Lava: a gateway for the real SDKs, over real sockets, without an account or a
network.

- ``state.py`` the ``World`` (keys, account, objects at providers, records, behaviour, histories)
  and ``records.py`` its rows; ``state_file.py`` saves it
- ``application.py`` all routes; ``endpoint.py`` one route; ``responder.py``, ``server.py``
  responses and sockets
- ``gateway.py`` forward, rewrite, native endpoints and models; ``rewrite.py`` translates dialects;
  ``credentials.py`` decides who pays; ``faults.py`` is the table of faults
- ``providers.py`` finds the provider of an address; ``openai*.py``, ``anthropic*.py``,
  ``google*.py`` and ``elevenlabs.py`` answer; ``structured_output.py`` makes tool calls and JSON;
  ``provider_errors.py`` their errors; ``exchange.py`` their types
- ``account.py`` the account API; ``account_call.py`` one call of it; ``customers.py``,
  ``meters.py``, ``plans.py``, ``checkout.py``, ``billing.py``, ``keys.py``, ``webhooks.py`` its
  resources; ``shapes.py`` their JSON
- ``login.py`` the login flow; ``pages.py`` HTML
"""

from __future__ import annotations

from proxy.emulator.application import create_emulator
from proxy.emulator.server import Emulator, serve_forever
from proxy.emulator.state import World

__all__ = ["Emulator", "World", "create_emulator", "serve_forever"]
