"""lava-proxy: a local forwarding proxy for the Lava AI gateway.

One request, and the folder of each step. ``gateway/serve.py`` reads from top to bottom:

1. ``http/``       bytes in: a strict HTTP/1.1 protocol, or any ASGI server
2. ``gateway/``    open (``active_request``), admit (``access``, ``routing``), permit (``admission``), body (``request_body``),
                   target (``targets``, ``destinations/``), send (``dispatch``), respond (``relay``, ``ending``)
3. ``upstream/``   bytes out and in: connections to Lava
4. ``observe/``    the record of the request: log, metrics

Around it: ``protocol/`` (pure facts and values), ``config/`` (the settings), ``lava/`` (Lava's account API, tokens),
``emulator/`` (an offline Lava), ``app.py`` and ``daemon.py`` (wiring, sockets, signals) and ``cli/`` (the only place that
prints or exits). ``docs/architecture.md`` has the rules for imports, which ``lint-imports`` holds.
"""

__version__ = "0.1.0"

SUMMARY = "a local forwarding proxy for the Lava AI gateway"

HOMEPAGE = "https://pypi.org/project/lava-proxy/"
"""The address of the README, as in the package's metadata."""
