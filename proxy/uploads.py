"""The address that Google gives for a file's bytes, led through this daemon.

An upload to Google is begun with one request, and its answer names the address that takes the bytes: on Google's own host,
with an id in the query that stands for the credential. Google's SDKs send the file there directly, past the daemon and past
Lava, and send no key with it. So the header is changed to the same address below ours; the body of the answer is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote_from_bytes

from proxy import gate
from proxy.dialects import Dialect
from proxy.headers import PROXY_KEY, UPLOADS

if TYPE_CHECKING:
    from proxy.gate import Admission
    from proxy.generation import Generation, Plan
    from proxy.headers import Pairs, Received


class Asked(Protocol):
    """What has to be known of the request that began an upload."""

    admission: Admission
    generation: Generation
    method: str
    path: str
    query: bytes
    received: Received


def lead_here(pairs: Pairs, plan: Plan, admitted: Asked) -> Pairs:
    """``pairs`` with the addresses for uploads at the plan's provider made addresses of this daemon.

    Each names the project, and the key that the tool sent with this request, for the tool will send none with the next. Where
    the tool sent a local key and a provider's key as well, there is no place for both, and the addresses stay as they are.
    """
    provider, noted, header = plan.route.provider, admitted.received.noted, admitted.admission.key_header
    own = plan.credential.payment.byok_from_client
    if provider.dialect is not Dialect.GOOGLE or (own and header is not None):
        return pairs
    key = b""
    if header == PROXY_KEY:
        key = noted[PROXY_KEY].strip()
    elif own or header is not None:
        path, method = admitted.path.encode("ascii", "replace"), admitted.method
        found = gate.key_of(admitted.received, path, admitted.generation, method=method, query=admitted.query)
        key = found[1] if found is not None else b""
    named = b"key=" + quote_from_bytes(key, safe=b"").encode("ascii") if key else b""
    theirs = b"/".join(provider.base_url.encode("ascii").split(b"/", 3)[:3])
    ours = b"http://%b/p/%b/%b" % (noted[b"host"], plan.route.project.encode("ascii"), provider.name.encode("ascii"))

    def led(value: bytes) -> bytes:
        if not value.startswith(theirs + b"/upload/"):
            return value
        address, _, query = value.removeprefix(theirs).partition(b"?")
        query = b"&".join(filter(None, (query, named)))
        return ours + address + (b"?" + query if query else b"")

    return [(name, led(value) if name in UPLOADS else value) for name, value in pairs]
