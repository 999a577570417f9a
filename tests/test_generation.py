"""One configuration made ready: addresses, keys as hashes, credentials and plans kept only where they may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from proxy.dialects import Dialect
from proxy.generation import Generation, digest
from proxy.redaction import Secret, leaks
from proxy.routing import Kind, Place, route
from proxy.settings import Settings
from proxy.tokens import mint_token
from proxy.upstream import Outgoing

if TYPE_CHECKING:
    from proxy.upstream import Engine

LIVE = "aks_live_" + "g" * 20
TEST = "aks_test_" + "g" * 20


def generation(engine: Any = None, **tables: Any) -> Generation:
    lava = {"secret_key": Secret(LIVE), **tables.pop("lava", {})}
    made: Engine = engine
    return Generation(Settings.model_validate({"lava": lava, **tables}), made)


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
    lava = generation(projects={"one": project}).lava("one")
    assert (lava.origin.scheme, lava.origin.host, lava.origin.port) == ("https", host, 443)
    assert (lava.host, lava.base_path) == (host.encode(), b"/v1")


def test_an_explicit_address_is_used_for_all() -> None:
    """Host and path as given, the port where it is not the scheme's own."""
    made = generation(
        lava={"base_url": "http://127.0.0.1:8000/other/v1"}, projects={"one": {"secret_key": Secret(TEST)}}
    )
    lava = made.lava("one")
    assert (lava.origin.port, lava.host, lava.base_path) == (8000, b"127.0.0.1:8000", b"/other/v1")


def test_local_keys_are_kept_as_hashes_with_their_project() -> None:
    """Nothing of the generation's own table shows a key."""
    free, bound = "free-key-0123456789", "bound-key-0123456789"
    made = generation(server={"keys": (Secret(free),)}, projects={"web": {"keys": (Secret(bound),)}, "x": {}})
    assert made.keys == {digest(free.encode()): None, digest(bound.encode()): "web"}
    assert leaks(repr(made.keys), [free, bound]) == []


def plan_of(made: Generation, project: str, client_key: str | None = None) -> Any:
    place = Place(Kind.MODEL, Dialect.OPENAI, b"chat/completions")
    return made.plan(route("POST", place, b"", project, "gpt-4o", made.table), client_key)


def test_a_plan_is_kept_but_never_with_the_tools_own_key() -> None:
    """A key that passes by is not ours to keep: neither its plan nor its credential."""
    made = generation(projects={"own": {}, "tool": {"byok": "client"}})
    kept, passing = plan_of(made, "own"), plan_of(made, "tool", "from-the-tool-0123456789")
    made.remember(("a",), kept)
    made.remember(("b",), passing)
    assert made.plans == {("a",): kept}
    assert passing.credential.payment.byok_from_client
    other = plan_of(made, "tool", "another-tool-key-012345")
    assert other.head != passing.head


def test_the_tables_of_plans_and_places_are_bounded() -> None:
    """In bytes, whatever clients ask for: many, long ones, or many long ones."""
    made = generation()
    plan = plan_of(made, "default")
    for length, times in ((1, 5000), (200, 3000), (8000, 20)):
        for number in range(times):
            made.remember(("POST", b"/x", b"%04d" % number * length, "gpt-4o"), plan)
            made.locate("POST", b"/openai/v1/" + b"%04d" % number * length, {})
        assert sum(len(key[2]) for key in made.plans if isinstance(key[2], bytes)) < 4 * 1024 * 1024
        assert sum(len(key[1]) for key in made.places) < 1024 * 1024
        assert 0 < len(made.plans) <= 4096
        assert 0 < len(made.places) <= 1024


@pytest.mark.parametrize("path", [b"/v1/models", b"/v1/files", b"/v1/skills", b"/p/default/v1/batches/b_1", b"/files"])
def test_a_remembered_address_is_the_speakers(path: bytes) -> None:
    """Where the headers decide, the next request's own do, whatever was asked before it."""
    made = generation()
    for _ in range(2):
        for headers, dialect in (
            ({b"anthropic-version": b"x"}, Dialect.ANTHROPIC),
            ({}, Dialect.OPENAI),
            ({b"x-goog-api-client": b"x"}, Dialect.GOOGLE),
        ):
            assert made.locate("GET", path, headers).dialect is dialect


def test_no_repr_shows_a_secret() -> None:
    """Plans and credentials are held by frames that a traceback may print."""
    made = generation()
    plan = plan_of(made, "default")
    token = mint_token(LIVE)
    out = Outgoing(b"GET", plan.origin, plan.target, plan.head)
    assert leaks(f"{plan!r} {plan.credential!r} {out!r} {made!r}", [LIVE, token]) == []
    assert leaks(repr(made.settings), [LIVE]) == []


def test_usable_says_what_is_missing() -> None:
    """Ready with any credential of the default project, else a reason that names the setting."""
    assert generation().usable() is None
    bare = Generation(Settings(), None)  # type: ignore[arg-type]  # no request is made
    assert "LAVA_SECRET_KEY" in (bare.usable() or "")
