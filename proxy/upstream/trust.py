"""Whom TLS trusts: the system's certificates and, beside them, those of one file."""

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
"""Where systems keep their bundle when this Python was built for another one (Debian, Fedora, SUSE,
Alpine)."""


def context(ca_file: str = "") -> ssl.SSLContext:
    """A client context that checks certificate and name, by the system's store and ``ca_file`` (PEM, "" =
    none).

    Takes some 20 ms: not for the event loop. Not ``ssl.create_default_context``, which would write the
    session keys to wherever ``SSLKEYLOGFILE`` points. Raises ``OSError`` or ``ssl.SSLError`` for a bad
    ``ca_file``.
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
