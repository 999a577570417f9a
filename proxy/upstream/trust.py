"""Certificates that TLS trusts: the system's and, in addition, those of one file."""

from __future__ import annotations

import os
import ssl
import sys

BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Paths of the systems' bundles, for a Python that was built for another system (Debian, Fedora, SUSE, Alpine)."""


def context(ca_file: str = "") -> ssl.SSLContext:
    """Return a client context that checks certificate and name, with the system's store and ``ca_file`` (PEM, "" = none).

    Takes about 20 ms, so do not call it on the event loop. Not ``ssl.create_default_context``, which would write the session
    keys to the file in ``SSLKEYLOGFILE``. Raises ``OSError`` or ``ssl.SSLError`` for a bad ``ca_file``.
    """
    made: ssl.SSLContext
    if sys.platform in {"darwin", "win32"}:
        import truststore

        made = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    else:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.load_default_certs()
        paths = ssl.get_default_verify_paths()
        if paths.cafile is None and paths.capath is None:
            bundle = next(filter(os.path.isfile, BUNDLES), None)
            if bundle is not None:
                made.load_verify_locations(bundle)
    if ca_file:
        made.load_verify_locations(ca_file)
    return made
