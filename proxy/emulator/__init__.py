"""The offline Lava: a gateway good enough for the real SDKs, over real sockets, without an account.

``World`` is its state (keys, customers, money, everything received), ``create_emulator`` the ASGI application
over a world, ``Emulator`` a running one in a thread, ``serve_forever`` the same as a program. The rooms:

- ``application.py``  the address space; ``gateway.py`` forward, rewrite, native endpoints and models
- ``account.py``  the account API's table and what every call goes through; ``asking.py`` reads a call's fields,
  ``customers.py``, ``meters.py``, ``plans.py``, ``checkout.py``, ``ledger.py``, ``keys.py``, ``webhooks.py`` answer it,
  ``records.py`` is what they keep and ``shapes.py`` how that looks as JSON in either generation of names
- ``login.py``  the login flow; ``pages.py`` its HTML; ``outbox.py`` delivers webhooks
- ``credentials.py``  forward tokens, secret keys, spend keys: who calls, who pays
- ``players.py``    which provider a target means; ``openai.py`` (``openai_media.py``, ``openai_stored.py``),
  ``anthropic.py`` (``anthropic_batches.py``), ``google.py`` (``google_files.py``, ``google_caches.py``) and
  ``elevenlabs.py`` play them; ``wording.py`` has their errors
- ``wanted.py``     what a request wants beside words: JSON after a schema, the call of a tool
- ``rewriting.py``  chat completions and messages, translated into each other
- ``faults.py``     what can go wrong on demand, in one table
- ``exchange.py``, ``bodies.py``, ``delivery.py``, ``serving.py``  from bytes to a call, from a reply to bytes
- ``keeping.py``     the state as a document, for the next start

It has no keys but its own and never talks to anyone.
"""

from __future__ import annotations

from proxy.emulator.application import create_emulator
from proxy.emulator.serving import Emulator, serve_forever
from proxy.emulator.state import World

__all__ = ["Emulator", "World", "create_emulator", "serve_forever"]
