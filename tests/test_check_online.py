"""``lava-proxy check --online``: what Lava says of each project before anything fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from configurations import written
from rawclient import post
from test_cli import Ran, lava_proxy
from upstream import Upstream, answer

from proxy.lava.tokens import mint_token
from proxy.protocol.redaction import leaks

if TYPE_CHECKING:
    from pathlib import Path

    from daemons import StartDaemon

    from proxy.emulator import Emulator

GOOD = """
default_project = "main"
[projects.main]
[projects.website]
connection_id = "conn_demo"
meter = "website-chat"
"""


class Checks:
    """Checks configurations with the emulator's account."""

    def __init__(self, home: Path, emulator: Emulator) -> None:
        self.home = home
        self.world = emulator.world
        self.base_url = emulator.base_url

    def __call__(self, text: str, *words: str, code: int = 0, **env: str) -> Ran:
        """Check a configuration, which must end with ``code``; no key stands in what it prints."""
        config = written(self.home, text)
        known = {"LAVA_SECRET_KEY": self.world.secret_key, "LAVA_PROXY_LAVA__BASE_URL": self.base_url, **env}
        ran = lava_proxy(self.home, "check", "--online", "--config", config, *words, env=known)
        assert ran.code == code, ran
        assert not leaks(
            ran.out + ran.err, [self.world.secret_key, self.world.test_key, *self.world.spend_keys.values()]
        )
        return ran

    @property
    def questions(self) -> list[str]:
        """What the account API was asked."""
        return [each.path for each in self.world.received]


@pytest.fixture
def check(tmp_path: Path, emulator: Emulator) -> Checks:
    return Checks(tmp_path, emulator)


def test_a_good_account(check: Checks) -> None:
    """Exit code 0, and for each project what Lava knows and holds, beside what ``check`` says anyway."""
    ran = check(GOOD)
    flat = " ".join(ran.out.split())
    assert "The configuration is good" in flat
    assert f"✓ Lava knows the secret key …{check.world.secret_key[-4:]} (a live key)." in flat
    assert "✓ the merchant wallet holds $20.00." in flat
    assert "✓ connection conn_demo exists." in flat
    assert '✓ meter "website-chat" exists.' in flat
    assert "✓ the wallet behind connection conn_demo holds credit." in flat
    assert ran.out.endswith("Lava finds no fault with any project.\n")
    assert ran.err == ""


def test_without_online_nobody_is_asked(check: Checks) -> None:
    """The plain check needs no network."""
    config = written(check.home, GOOD)
    env = {"LAVA_SECRET_KEY": check.world.secret_key, "LAVA_PROXY_LAVA__BASE_URL": check.base_url}
    assert lava_proxy(check.home, "check", "--config", config, env=env).code == 0
    assert check.questions == []


WRONG = """
default_project = "main"
[projects.main]
[projects.typo]
connection_id = "conn_demo"
meter = "websit-chat"
[projects.gone]
customer_id = "conn_nobody"
meter = "website-chat"
[projects.empty]
connection_id = "conn_empty"
meter = "website-chat"
[projects.revoked]
secret_key = "env:REVOKED"
[projects.ready]
forward_token = "env:TOKEN"
[projects.agent]
spend_key = "env:SPEND"
[projects.lab]
meter = "internal"
byok.openai = "env:OWN"
"""


def wrong_environment(check: Checks) -> dict[str, str]:
    token = mint_token(check.world.secret_key, customer_id="conn_demo", meter_slug="demo-cha")
    return {
        "REVOKED": "aks_live_" + "r" * 20,
        "TOKEN": token,
        "SPEND": check.world.spend_keys["openai"],
        "OWN": "own-provider-" + "k" * 20,
    }


def test_everything_that_would_fail_is_told_at_once(check: Checks) -> None:
    """One sentence for each, with what to do; exit code 1; the projects are named at the end."""
    ran = check(WRONG, code=1, **wrong_environment(check))
    flat = " ".join(ran.out.split())
    assert (
        '✗ meter "websit-chat" does not exist; did you mean "website-chat"? Write "website-chat" as meter under [projects.typo].'
        in flat
    )
    assert "✗ customer conn_nob…ody does not exist: it was deleted" in flat
    assert "✗ the wallet behind connection conn_empty holds no credit" in flat
    assert "✗ Lava does not know the secret key …rrrr" in flat
    assert '✗ meter "demo-cha" does not exist; did you mean "demo-chat"?' in flat
    assert "models for this spend key" in flat
    assert "? the provider's key is not checked" in flat
    assert "? not checked: a spend key cannot ask Lava's account" in flat
    assert "knows the spend key" not in flat
    assert "Something is wrong in: typo, gone, empty, revoked, ready.\n" in ran.out
    assert ran.out.endswith("Could not be checked: agent, lab.\n")


def test_the_same_as_json(check: Checks) -> None:
    """For scripts: ``ok`` on top and for each project, and the parts by name."""
    report = check(WRONG, "--json", code=1, **wrong_environment(check)).json
    assert report["ok"] is False
    rows = {row["name"]: row["online"] for row in report["projects"]}
    assert {name: [each["part"] for each in row["wrong"]] for name, row in rows.items() if not row["ok"]} == {
        "typo": ["meter"],
        "gone": ["customer"],
        "empty": ["wallet"],
        "revoked": ["key"],
        "ready": ["meter"],
        "agent": [],
        "lab": [],
    }
    assert [name for name, row in rows.items() if row["not_known"] is not None] == ["agent", "lab"]
    good = check(GOOD, "--json").json
    assert (good["ok"], [row["online"]["ok"] for row in good["projects"]]) == (True, [True, True])


def test_many_projects_share_their_questions(check: Checks) -> None:
    """Wallet and meters are asked about once for a key, however many projects have it."""
    text = "".join(f'[projects.p{number}]\ncustomer_id = "conn_demo"\nmeter = "website-chat"\n' for number in range(50))
    check(text)
    assert sorted(check.questions) == [
        "/v1/connections/conn_demo",
        "/v1/customers/conn_demo",
        "/v1/customers/conn_demo/subscription",
        "/v1/meters",
        "/v1/wallet",
    ]


def test_no_key(check: Checks) -> None:
    """That is what is wrong, then; nobody is asked."""
    ran = check(GOOD, code=1, LAVA_SECRET_KEY="")
    assert "✗ no Lava secret key is configured. Run `lava-proxy login`" in ran.out
    assert check.questions == []


def test_a_token_that_cannot_be_read(check: Checks) -> None:
    """Nothing can be asked with it: that is no proof that it is good."""
    ran = check('[projects.ready]\nforward_token = "env:TOKEN"\n', code=1, TOKEN="some-ready-token-that-is-none")
    assert "? not checked: the key in its forward token cannot be read." in ran.out
    assert "✓" not in ran.out


def test_the_network_is_down(check: Checks, free_port: int) -> None:
    """A sentence for each project, exit code 1, no traceback (which ``lava_proxy`` looks for)."""
    url = f"http://127.0.0.1:{free_port}"
    ran = check(GOOD, code=1, LAVA_PROXY_LAVA__BASE_URL=url)
    assert ran.out.count("? Lava's account API cannot be reached: Connection refused.") == 2
    assert ran.out.endswith("Could not be checked: main, website.\n")
    report = check(GOOD, "--json", code=1, LAVA_PROXY_LAVA__BASE_URL=url).json
    assert report["ok"] is False
    assert "cannot be reached" in report["projects"][0]["online"]["not_known"]


def test_the_rate_limit(check: Checks) -> None:
    """Told, and when to come back; nobody waits a minute."""
    check.world.rest_limit = 1
    flat = " ".join(check(GOOD, code=1).out.split())
    assert "? Lava allows 1000 requests a minute for a key, and this one has had them: try again in" in flat


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer(200, b"<html>log in</html>"), "a web page"),
        (answer(401, b"<html>log in</html>"), "a web page"),
        (answer(404, b"<html>log in</html>"), "nothing of use"),
        (answer(500, b""), "does not say"),
        (answer(302, b"", [(b"location", b"https://elsewhere.example.com/")]), "a redirect"),
        (b"what?\r\n\r\n", "cannot be reached"),
    ],
)
def test_what_is_no_lava(check: Checks, said: bytes, why: str) -> None:
    """HTML instead of JSON and its like: never taken for «everything is good», nor for a key that Lava does not know."""
    with Upstream(said) as upstream:
        ran = check("", code=1, LAVA_PROXY_LAVA__BASE_URL=upstream.url)
    flat = " ".join(ran.out.split())
    assert why in flat
    assert "✓" not in flat
    assert "Could not be checked: default." in flat


@pytest.mark.parametrize("generation", [8, 9, 11])
def test_every_generation_of_names(check: Checks, generation: Any) -> None:
    """It works whichever names Lava speaks."""
    check.world.generation = generation
    assert "✓ connection conn_demo exists." in check(GOOD).out


@pytest.mark.parametrize(
    ("config", "prefix", "said"),
    [
        ("[projects.main]\n", "lava_sk_", "secret_key under [lava] begins with lava_sk_"),
        ("[projects.main]\n", "sk-ant-", "secret_key under [lava] begins with sk-ant-"),
        ('[projects.main]\nbyok.openai = "env:OWN"\n', "", "byok.openai under [projects.main] begins with gsk_"),
    ],
)
def test_the_first_refusal_names_a_misplaced_key(
    emulator: Emulator, daemon: StartDaemon, config: str, prefix: str, said: str
) -> None:
    """A request that Lava or the provider refuses with 401: the client reads which key is in the wrong place."""
    tail = "Wq8z" * 6
    key = prefix + tail if prefix else emulator.world.secret_key
    env = {"LAVA_SECRET_KEY": key, "OWN": "gsk_" + tail, "LAVA_PROXY_LAVA__BASE_URL": emulator.base_url}
    running = daemon(config, env=env, secrets=[tail])
    emulator.world.rejected_provider_keys.add("gsk_" + tail)
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
    got = post(running.port, "/v1/chat/completions", body)
    assert got.status == 401
    error = json.loads(got.body)["error"]
    assert f'Project "main": {said}' in error["message"]
    assert error["lava_proxy"]["hint"].startswith("Write it as ")
    assert tail not in got.body.decode()
