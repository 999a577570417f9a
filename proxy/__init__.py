"""lava-proxy: a local forwarding proxy for the Lava AI gateway.

One request, as a story, and the room where each step lives:

1. bytes in      ``server.py``, ``guard.py``, ``framing.py``   uvicorn with a stricter HTTP front
2. gate          ``gate.py``                      Host, Origin, local key, before the body is read
3. route         ``routing.py``, ``body.py``      method, path, headers, ``model`` -> a frozen ``Route``
4. token         ``tokens.py``                    project and provider -> Lava's credential
5. out           ``headers.py``                   a new set of headers beside the received ones
6. upstream      ``upstream/``                    the seam to the network
7. answer        ``errors.py``                    Lava's 401 and 402 become sentences a person understands;
                 ``diagnosis.py``, ``inquiry.py`` Lava's account is asked which part is wrong
8. relay         ``forward.py``, ``usage.py``     bytes leave as they came; a scanner reads along
                 ``express.py``                   the same steps without waiting, for a request like one before
9. record        ``record.py``, ``logs.py``, ``metrics.py``   how it ended, exactly once

Around it: ``settings.py`` (what the user said), ``credentials.py`` (what a login brought), ``providers.py`` and ``dialects.py``
(facts), ``redaction.py`` (secrets stay secret), ``catalog.py`` (``GET /v1/models``), ``app.py`` (puts the parts together), ``emulator/`` (an offline Lava) and ``cli/``
(the only place that prints or exits). Imports point one way; ``tests/test_house.py`` holds the order.
"""

__version__ = "0.1.0"

HOMEPAGE = "https://pypi.org/project/lava-proxy/"
"""Where the README is to be read; the same as in the package's own metadata."""
