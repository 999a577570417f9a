"""One configuration made ready: addresses, keys as hashes, credentials kept only where they may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import Settings
from proxy.gateway.access import digest
from proxy.gateway.active_config import ActiveConfig
from proxy.gateway.routing import Endpoint, EndpointKind, route
from proxy.gateway.template import Prepared, Template
from proxy.lava.tokens import mint_token
from proxy.protocol.dialects import Dialect
from proxy.protocol.headers import read
from proxy.protocol.redaction import Secret, leaks

if TYPE_CHECKING:
    from proxy.upstream import Engine

LIVE = "aks_live_" + "g" * 20
TEST = "aks_test_" + "g" * 20


def configured(engine: Any = None, **tables: Any) -> ActiveConfig:
    lava = {"secret_key": Secret(LIVE), **tables.pop("lava", {})}
    made: Engine = engine
    return ActiveConfig(Settings.model_validate({"lava": lava, **tables}), made)


@pytest.mark.parametrize(
    ("project", "host"),
    [
        ({}, "api.lavapayments.com"),
        ({"secret_key": Secret(TEST)}, "sandbox-api.lavapayments.com"),
        ({"forward_token": Secret(mint_token(TEST))}, "sandbox-api.lavapayments.com"),
        ({"forward_token": Secret(mint_token(LIVE))}, "api.lavapayments.com"),
        ({"spend_key": Secret("lava_sk_" + "g" * 20)}, "api.lavapayments.com"),
    ],
)
def test_lavas_host_follows_each_projects_own_credential(project: dict[str, Any], host: str) -> None:
    """Sandbox for a test key, also inside a ready token; production for everything else."""
    lava = configured(projects={"one": project}).destination.address("one")
    assert (lava.origin.scheme, lava.origin.host, lava.origin.port) == ("https", host, 443)
    assert (lava.host, lava.base_path) == (host.encode(), b"/v1")


def test_an_explicit_address_is_used_for_all() -> None:
    """Host and path as given, the port where it is not the scheme's own."""
    made = configured(
        lava={"base_url": "http://127.0.0.1:8000/other/v1"}, projects={"one": {"secret_key": Secret(TEST)}}
    )
    lava = made.destination.address("one")
    assert (lava.origin.port, lava.host, lava.base_path) == (8000, b"127.0.0.1:8000", b"/other/v1")


def test_local_keys_are_kept_as_hashes_with_their_project() -> None:
    """Nothing of the configuration's own table shows a key."""
    free, bound = "free-key-0123456789", "bound-key-0123456789"
    made = configured(server={"keys": (Secret(free),)}, projects={"web": {"keys": (Secret(bound),)}, "x": {}})
    assert made.keys == {digest(free.encode()): None, digest(bound.encode()): "web"}
    assert leaks(repr(made.keys), [free, bound]) == []


def prepared_of(made: ActiveConfig, project: str, client_key: str | None = None) -> Prepared:
    sent = [(b"authorization", b"Bearer " + client_key.encode())] if client_key is not None else []
    template = Template(made, "POST", b"/v1/chat/completions", b"", read(sent))
    template.endpoint = Endpoint(EndpointKind.MODEL, Dialect.OPENAI, b"chat/completions")
    return made.destination.prepare(template, route("POST", template.endpoint, b"", project, "gpt-4o", made.table))


def test_the_tools_own_key_is_not_kept() -> None:
    """A key that passes by is not ours to keep: neither what was prepared with it nor its credential."""
    made = configured(projects={"own": {}, "tool": {"byok": "client"}})
    kept, passing = prepared_of(made, "own"), prepared_of(made, "tool", "from-the-tool-0123456789")
    assert kept.reusable
    assert not passing.reusable
    assert passing.credential.payment.byok_from_client
    other = prepared_of(made, "tool", "another-tool-key-012345")
    assert other.outgoing.headers != passing.outgoing.headers
    assert other.outgoing.origin != passing.outgoing.origin
    assert [each.payment.project for each in made.destination._credentials.values()] == ["own"]


def test_no_repr_shows_a_secret() -> None:
    """Prepared requests and credentials are held by frames that a traceback may print."""
    made = configured()
    prepared = prepared_of(made, "default")
    token = mint_token(LIVE)
    assert leaks(f"{prepared!r} {prepared.credential!r} {prepared.outgoing!r} {made!r}", [LIVE, token]) == []
    assert leaks(repr(made.settings), [LIVE]) == []


def test_usable_says_what_is_missing() -> None:
    """Ready with any credential of the default project, else a reason that names the setting."""
    assert configured().usable() is None
    bare = ActiveConfig(Settings(), None)  # type: ignore[arg-type]  # no request is made
    assert "LAVA_SECRET_KEY" in (bare.usable() or "")
