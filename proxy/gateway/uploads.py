"""Rewriting of Google's upload addresses, so that uploads pass through this daemon.

An upload to Google starts with one request. Its response names the address for the bytes: on Google's own host, with an id in
the query that serves as the credential. Google's SDKs send the file to that address directly, not through the daemon or Lava,
and without a key. The header is therefore changed to the same path on this daemon. The body of the response is unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

from proxy.gateway import access
from proxy.protocol.dialects import Dialect
from proxy.protocol.headers import PROXY_KEY, UPLOADS

if TYPE_CHECKING:
    from proxy.gateway.template import Prepared, Template
    from proxy.protocol.headers import Pairs


def lead_here(pairs: Pairs, prepared: Prepared, template: Template) -> Pairs:
    """Return ``pairs`` with the provider's upload addresses replaced by addresses of this daemon.

    Each contains the project and the key that the tool sent with this request, because the tool sends none with the next one.
    If the tool sent both a local key and a provider's key, an address cannot hold both, and the addresses stay unchanged.
    """
    provider, noted, header = prepared.route.provider, template.received.noted, template.caller.key_header
    own = prepared.credential.payment.byok_from_client
    if provider.dialect is not Dialect.GOOGLE or (own and header is not None):
        return pairs
    key = b""
    if header == PROXY_KEY:
        key = noted[PROXY_KEY].strip()
    elif own or header is not None:
        found = access.key_of(
            template.received, template.path, template.config, method=template.method, query=template.query
        )
        key = found[1] if found is not None else b""
    named = b"key=" + quote_from_bytes(key, safe=b"").encode("ascii") if key else b""
    theirs = b"/".join(provider.base_url.encode("ascii").split(b"/", 3)[:3])
    ours = b"http://%b/p/%b/%b" % (
        noted[b"host"],
        prepared.route.project.encode("ascii"),
        provider.name.encode("ascii"),
    )

    def rewritten(value: bytes) -> bytes:
        if not value.startswith(theirs + b"/upload/"):
            return value
        address, _, query = value.removeprefix(theirs).partition(b"?")
        query = b"&".join(filter(None, (query, named)))
        return ours + address + (b"?" + query if query else b"")

    return [(name, rewritten(value) if name in UPLOADS else value) for name, value in pairs]
