"""Dispatch: when another target may be tried."""

from __future__ import annotations

import pytest

from proxy.gateway.dispatch import may_retry
from proxy.upstream import UpstreamError


@pytest.mark.parametrize("kind", ["unreachable", "tls", "connect_timeout", "proxy", "closed", "protocol"])
@pytest.mark.parametrize("sent", [False, True], ids=["unsent", "sent"])
def test_only_what_was_not_sent_may_be_retried(kind: str, sent: bool) -> None:
    """Whatever the fault: a request of which a byte was sent may have cost money."""
    assert may_retry(UpstreamError(kind, sent, "")) is not sent  # type: ignore[arg-type]  # each kind is one of the type's
