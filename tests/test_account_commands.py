"""``lava-proxy api`` and the friendly doors to Lava's account, against the emulator."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from daemons import clean_environment
from test_cli import Ran, at_terminal, called, command, lava_proxy

from proxy.cli import arguments, drawing, rendering, times
from proxy.cli.arguments import UsageError
from proxy.lava import records
from proxy.lava.money import dollars
from proxy.lava.resources import ACTIONS, Param, ParameterKind, names, parameters, resources
from proxy.protocol.redaction import Secret, leaks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from proxy.emulator import Emulator

NOW = datetime(2026, 11, 23, 12, 30, tzinfo=timezone(timedelta(hours=1)))


class Account:
    """Runs commands with the emulator's account."""

    def __init__(self, home: Path, emulator: Emulator) -> None:
        self.home = home
        self.world = emulator.world
        self.env = {"LAVA_SECRET_KEY": self.world.secret_key, "LAVA_PROXY_LAVA__BASE_URL": emulator.base_url}

    def __call__(self, *words: str, code: int = 0, env: Mapping[str, str] | None = None) -> Ran:
        """Run a command that must end with ``code``; the account's own keys stand in nothing it prints."""
        ran = called(self.home, *words, env={**self.env, **(env or {})})
        assert ran.code == code, ran
        assert not leaks(ran.out + ran.err, [self.world.secret_key, self.world.test_key])
        return ran

    def json(self, *words: str) -> Any:
        """The JSON that a command prints."""
        return self(*words, "--json").json


@pytest.fixture
def account(tmp_path: Path, emulator: Emulator) -> Account:
    return Account(tmp_path, emulator)


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_help_names_every_resource_and_action(tmp_path: Path) -> None:
    """It comes from the table of the client, and loads neither the client nor anything else that is slow."""
    script = (
        "import sys; sys.argv = ['lava-proxy', 'api', '--help']\n"
        "from proxy.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [*command()[:1], "-c", script], env=clean_environment(tmp_path), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0
    listed = dict(re.findall(r"^  (\w+) +([a-z_, ]+)$", done.stdout, re.MULTILINE))
    assert {name: tuple(told.split(", ")) for name, told in listed.items()} == {
        resource: names(resource) for resource in resources()
    }
    assert not set(re.findall(r"'(\w+)'", done.stderr)) & {"httpx2", "rich", "keyring", "ssl", "asyncio"}


@pytest.mark.parametrize("key", sorted({row.key for row in ACTIONS}))
def test_each_action_has_a_help(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every field with its doc, every id, and a warning where a secret comes or something goes."""
    from proxy.cli.api import run

    resource, action = key.split(".")
    assert run(None, [resource, action, "--help"]) == 0
    said = capsys.readouterr().out
    for param in parameters(key):
        assert f"{arguments.option_name(param.name)} " in said
        assert param.doc in said
        assert arguments.option_name(param.name) not in arguments.OPTIONS
    (row, *_) = (row for row in ACTIONS if row.key == key)
    assert all(name.upper() in said for name in row.ids)
    assert ("only once" in said) == row.once
    assert ("--yes" in said) == row.destructive
    assert ("--all  " in said) == row.paged


def test_help_of_a_resource(tmp_path: Path) -> None:
    """Its actions; dashes may stand for underscores; without ``--help`` it is wrong usage."""
    ran = called(tmp_path, "api", "spend-keys", "--help")
    assert ran.code == 0
    assert "rotate SPEND_KEY_ID" in ran.out
    assert called(tmp_path, "api", "spend_keys").code == 2
    assert called(tmp_path, "api").code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["metres", "list"], "there is no resource 'metres'; did you mean meters?"),
        (["zzz"], "there is no resource 'zzz'; there are: checkout_sessions"),
        (["meters", "creat"], "there is no action of meters 'creat'; did you mean create?"),
        (["meters", "creat", "--help"], "did you mean create?"),
        (["subscriptions", "retrievePlan", "plan_1"], "did you mean plans retrieve?"),
        (["customers", "getSubscription", "c"], "did you mean customers get_subscription?"),
        (["meters", "create", "--nmae", "x"], "no field --nmae; did you mean --name?"),
        (["wallet", "retrieve", "--name", "x"], "no fields"),
        (["meters", "create", "--name"], "--name needs a value"),
        (["meters", "list", "--jsno"], "did you mean --json?"),
        (["meters", "list", "-x"], "fields have two dashes"),
        (["meters", "create", "--name", "x"], "needs --rate-type and --tier-type and --tiers"),
        (["meters", "retrieve"], "needs METER_ID, and none was given"),
        (["webhooks", "update", "w"], "needs something to change: --name, --url"),
        (["meters", "retrieve", "a", "b"], "needs METER_ID, and 2 were given"),
        (["meters", "list", "a"], "takes no id"),
        (["meters", "retrieve", ".."], "which is no id"),
        (["meters", "list", "--limit", "ten"], "--limit is a whole number"),
        (["meters", "list", "--limit", "1", "--limit", "2"], "--limit is given twice"),
        (["usage", "retrieve", "--start", "yesterday"], "--start is a time such as"),
        (["plans", "create", "--name", "x", "--period-amount", "much"], "is an amount such as 12.50"),
        (["subscriptions", "list", "--status", "activ"], "did you mean active?"),
        (["requests", "list", "--customer-id", "a", "--connection-id", "b"], "do not go together"),
        (["requests", "list", "--metadata-filters", "x"], "is written KEY=VALUE"),
        (["fallback", "update", "--chain", "[{"], "--chain is not valid JSON"),
        (["fallback", "update", "--chain", "{}"], "--chain is a JSON list"),
        (["wallet", "retrieve", "--all"], "is no list"),
    ],
)
def test_wrong_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one sentence with the nearest name; nothing is asked of anybody."""
    from proxy.cli.api import run

    assert run(None, words) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.startswith("Error: ")
    assert len(shown.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "typed", "value"),
    [
        (ParameterKind.TEXT, ["x"], "x"),
        (ParameterKind.WHOLE, ["-5"], -5),
        (ParameterKind.MONEY, ["$12.50"], Decimal("12.50")),
        (ParameterKind.FLAG, ["true"], True),
        (ParameterKind.NAMES, ["a, b", "c"], ["a", "b", "c"]),
        (ParameterKind.NAMES, ['["a,b"]'], ["a,b"]),
        (ParameterKind.PAIRS, ["a=1", "b=x=y"], {"a": "1", "b": "x=y"}),
        (ParameterKind.TABLE, ["amount=50", "cycle=monthly", "rpm=60"], {"amount": "50", "cycle": "monthly", "rpm": 60}),
        (ParameterKind.TABLE, ['{"amount": 12.5}'], {"amount": Decimal("12.5")}),
        (ParameterKind.TABLES, ["start=0,rate=2.5", "start=100,rate=2"], [{"start": "0", "rate": "2.5"}, {"start": "100", "rate": "2"}]),
        (ParameterKind.TIME, ["2026-11-30T12:00:00Z"], datetime(2026, 11, 30, 12, tzinfo=UTC)),
        (ParameterKind.TIME, ["2h"], NOW + timedelta(hours=2)),
        (ParameterKind.TEXT, ["null"], None),
        (ParameterKind.TABLE, ["null"], None),
    ],
)  # fmt: skip
def test_values(kind: ParameterKind, typed: list[str], value: object) -> None:
    """Each kind of field, as it is typed and as it is meant."""
    assert arguments.parse_value(Param("field", "", kind, nullable=True), typed, NOW, ahead=True) == value


def test_a_span_of_time_lies_behind_or_ahead() -> None:
    """``30d`` is ago for a question, from now on for a key's end; what is beyond the calendar is refused."""
    assert arguments.parse_time("30d", NOW, "--start", ahead=False) == NOW - timedelta(days=30)
    assert arguments.parse_time("4w", NOW, "--expires-at", ahead=True) == NOW + timedelta(weeks=4)
    for text in ("999999w", "30", "d", "", "2026-13-01"):
        with pytest.raises(UsageError):
            arguments.parse_time(text, NOW, "--start", ahead=False)


def test_metadata_stays_text() -> None:
    """Keys and values of the user's own are never taken for numbers."""
    assert arguments.parse_value(Param("metadata", "", ParameterKind.TABLE), ["room=12"], NOW, ahead=True) == {
        "room": "12"
    }


# --- against the emulator --------------------------------------------------------------------------------------------


def test_the_life_of_a_meter(account: Account) -> None:
    """Create, list, change, show and delete; tables for people, JSON for scripts."""
    made = account.json(
        *("api", "meters", "create", "--name", "Chat", "--meter-slug", "my-chat", "--rate-type", "fixed"),
        *("--tier-type", "requests", "--tiers", "start=0,rate=0.50"),
    )
    assert made["meter_slug"] == "my-chat"
    assert made["tiers"][0]["rate"] == "0.50"
    meter = made["meter_id"]
    assert "my-chat" in account("api", "meters", "list").out
    assert account.json("api", "meters", "update", meter, "--name", "Talk")["name"] == "Talk"
    assert "Talk" in account("api", "meters", "retrieve", meter).out
    refused = account("api", "meters", "delete", meter, code=1)
    assert "--yes" in refused.err
    assert account.json("api", "meters", "delete", meter, "--yes") == {"id": meter, "deleted": True}
    gone = account("api", "meters", "retrieve", meter, code=1)
    assert gone.err.startswith("lava-proxy: Lava answered 404")
    assert gone.out == ""


def test_pages(account: Account) -> None:
    """A page by default, with the way to the next one; ``--all`` goes through them all."""
    first = account.json("api", "meters", "list", "--limit", "2")
    assert (len(first["data"]), first["has_more"]) == (2, True)
    second = account.json("api", "meters", "list", "--limit", "2", "--cursor", first["next_cursor"])
    assert (len(second["data"]), second["has_more"], second["next_cursor"]) == (1, False, None)
    whole = account.json("api", "meters", "list", "--limit", "1", "--all")
    assert whole == {"data": [*first["data"], *second["data"]]}
    ran = account("api", "meters", "list", "--limit", "2")
    assert first["next_cursor"] in ran.err
    assert account("api", "subscriptions", "list").out == "There are none.\n"


@pytest.mark.parametrize(
    ("resource", "field", "fields"),
    [
        ("spend_keys", "key", ["--name", "tool", "--rate-limit", "rpm=60", "--spend-limit", '{"amount": "5", "cycle": "daily"}']),
        ("secret_keys", "secret_key", ["--name", "ci"]),
        ("webhooks", "webhook_secret", ["--name", "hook", "--url", "https://hooks.example.com/lava"]),
    ],
)  # fmt: skip
def test_a_secret_is_shown_once(account: Account, resource: str, field: str, fields: list[str]) -> None:
    """Where Lava shows it: in full, with a warning beside the output; afterwards only a hint of it."""
    ran = account("api", resource, "create", *fields, "--json")
    secret = ran.json[field]
    assert len(secret) > 20
    assert "only now" in ran.err
    later = account("api", resource, "list", "--json")
    assert not leaks(later.out + later.err, [secret])
    assert later.err == ""
    people = account("api", resource, "create", *fields)
    assert re.search(rf"^  {field} +\S{{20,}}$", people.out, re.MULTILINE)
    assert "only now" in people.err


def test_rotation_asks_and_shows_the_new_secret(account: Account) -> None:
    """Rotating ends the old key, so it asks; the new one is shown once."""
    key = account.json("api", "spend_keys", "list")["data"][0]["spend_key_id"]
    assert "--yes" in account("api", "spend_keys", "rotate", key, code=1).err
    assert account.json("api", "spend_keys", "rotate", key, "--yes")["key"].startswith("lava_sk_")
    unasked = account("api", "spend_keys", "rotate", key, "--json", code=1)
    assert (unasked.json["ok"], unasked.json["code"]) == (False, "not_confirmed")
    assert "--yes" in unasked.err


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("yes", 0), ("n", 1), ("", 1)])
def test_a_destructive_action_asks_at_a_terminal(account: Account, answer: str, code: int) -> None:
    """A person is asked, and only a yes is one."""
    meter = next(iter(account.world.account.meters.values())).meter_id
    controller, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            command("api", "meters", "delete", meter),
            env=clean_environment(account.home, account.env),
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.write(controller, answer.encode() + b"\n")
        _, err = process.communicate(timeout=30)
    finally:
        os.close(controller)
        os.close(terminal)
    assert process.returncode == code, err
    assert "[y/N]" in err
    assert ("Nothing was done." in err) == bool(code)
    assert (meter in [each["meter_id"] for each in account.json("api", "meters", "list")["data"]]) == bool(code)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["api", "meters", "list"], ["wallet"], ["usage"], ["connections"], ["models"]])
def test_the_network_is_down(tmp_path: Path, free_port: int, words: list[str]) -> None:
    """One sentence, exit code 1, no traceback (which ``lava_proxy`` looks for)."""
    env = {"LAVA_SECRET_KEY": "aks_live_" + "d" * 20, "LAVA_PROXY_LAVA__BASE_URL": f"http://127.0.0.1:{free_port}"}
    ran = called(tmp_path, *words, env=env)
    assert (ran.code, ran.out) == (1, "")
    assert "cannot be reached: no connection: Connection refused" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert called(tmp_path, *words, "--json", env=env).json["ok"] is False


@pytest.mark.parametrize(
    ("fault", "said"),
    [("html-502", "a web page"), ("empty-500", "an empty answer"), ("redirect", "a redirect"), ("lava-403", "403")],
)
def test_an_answer_that_is_none(account: Account, fault: str, said: str) -> None:
    """HTML instead of JSON and its like: one sentence, exit code 1."""
    account.world.behaviour.account_faults = [fault] * 3  # a GET is made again
    ran = account("wallet", code=1)
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_the_rate_limit(account: Account) -> None:
    """The limit is told, and when to come back; nobody waits a minute."""
    account.world.behaviour.rest_limit = 1
    account("wallet")
    ran = account("wallet", code=1)
    assert "1000 requests a minute" in ran.err
    assert re.search(r"try again in \d+ seconds", ran.err)


def test_no_key_and_a_wrong_one(account: Account) -> None:
    """What to do: log in."""
    assert "lava-proxy login" in account("wallet", code=1, env={"LAVA_SECRET_KEY": ""}).err
    ran = account("wallet", "--json", code=1, env={"LAVA_SECRET_KEY": "aks_live_" + "wrong" * 4})
    assert (ran.json["status"], ran.json["code"]) == (401, "invalid_secret_key")
    assert ran.json["request_id"]


def test_a_broken_configuration(account: Account) -> None:
    """78, as for every command; ``--config`` works at each of its places."""
    missing = str(account.home / "missing.toml")
    for words_ in (["api", "wallet", "retrieve", "--config", missing], ["--config", missing, "api", "wallet", "retrieve"], ["wallet", "--config", missing], ["keys", "--config", missing, "list"]):  # fmt: skip
        assert account(*words_, code=78).err.count("missing.toml") == 1


def test_a_key_that_cannot_be_sent(account: Account) -> None:
    """A key with a space in it is a sentence, shown nowhere and sent nowhere."""
    ran = account("wallet", code=1, env={"LAVA_SECRET_KEY": "aks_live_mine spaced"})
    assert "holds a space, a line end" in ran.err
    assert "lava-proxy login" in ran.err
    assert "mine" not in ran.err
    assert account.world.received == []


@pytest.mark.parametrize(
    "words", [["wallet"], ["api", "meters", "list"], ["api", "meters", "list", "--all"], ["connections"], ["usage"]]
)
def test_ctrl_c(tmp_path: Path, words: list[str]) -> None:
    """Ends a command that waits for Lava at once: exit code 1, and nothing is printed."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        process = subprocess.Popen(
            command(*words),
            env=clean_environment(
                tmp_path, {"LAVA_SECRET_KEY": "aks_live_" + "c" * 20, "LAVA_PROXY_LAVA__BASE_URL": base}
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1000).startswith(b"GET /v1/")
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 1


# --- the friendly doors ----------------------------------------------------------------------------------------------


def test_wallet(account: Account) -> None:
    """The balance in dollars."""
    assert "$20.00" in account("wallet").out
    assert account.json("wallet") == {"wallet_id": "wal_demo", "balance": "20.00"}


def test_connections(account: Account) -> None:
    """Who they are, their plan and what is left of its credit."""
    account("api", "subscriptions", "create", "--customer-id", "conn_demo", "--plan-id", "plan_free")
    ran = account("connections")
    row = next(line for line in ran.out.splitlines() if "conn_demo" in line)
    assert all(part in row for part in ("Ada Demo", "user-1", "Free", "$1.00"))
    said = account.json("connections", "--limit", "1")
    assert (len(said["data"]), said["has_more"]) == (1, True)
    assert account.json("connections")["has_more"] is False


@pytest.mark.parametrize("generation", [8, 9, 11])
def test_every_generation_of_names(account: Account, generation: Any) -> None:
    """The doors work whichever names Lava speaks."""
    account.world.behaviour.generation = generation
    assert "conn_demo" in account("connections").out
    assert "Nothing was used" in account("usage").out
    assert "$20.00" in account("wallet").out


def spend(account: Account, count: int) -> None:
    """Requests through the gateway, paid by the merchant."""
    from proxy.lava import LavaSync

    with LavaSync(account.world.secret_key, base_url=account.env["LAVA_PROXY_LAVA__BASE_URL"]) as lava:
        for _ in range(count):
            lava.gateway(
                "https://api.openai.com/v1/chat/completions",
                body={"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]},
            )


def test_usage(account: Account) -> None:
    """A row and a bar for each day, costs in dollars, a total."""
    spend(account, 3)
    ran = account("usage", "--since", "7d")
    lines = ran.out.splitlines()
    assert lines[0].split()[:5] == ["day", "requests", "tokens", "cost", "charged"]
    assert re.search(r" 3 .*\$0\.0\d+ .*█{8,}", lines[1])
    assert lines[2].split()[0] == "total"
    said = account.json("usage", "--since", "7d")
    assert said["totals"]["total_requests"] == 3
    ascii_only = {**account.env, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    assert "#" * 8 in lava_proxy(account.home, "usage", env=ascii_only).out
    assert account("usage", "--since", "soon", code=2).err.startswith("Error: --since")
    assert "must be after" in account("usage", "--since", "1d", "--until", "2d", code=2).err


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bars_fit_the_terminal(account: Account, columns: int) -> None:
    """A day a line, the dearer one with the longer bar, and none broken at the edge."""
    account.world.clock = lambda: time.time() - 86_400
    spend(account, 1)
    account.world.clock = time.time
    spend(account, 3)
    env = {**account.env, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    lines = re.sub(r"\x1b\[[0-9;]*m", "", at_terminal(account.home, env, "usage")).splitlines()
    assert max(map(len, lines)) <= columns
    days = [line for line in lines if re.match(r" +20\d\d-", line)]
    bars = sorted(len(line.split()[-1]) for line in days)
    assert (len(days), bars[0] <= bars[1] // 3 + 1) == (2, True)
    assert bars[1] == {80: 21, 120: 40}[columns]


def test_usage_begins_at_midnight() -> None:
    """Days are whole ones in the local zone; hours and dates are as they were said."""
    begun = times.begin("30d", NOW)
    assert (begun.hour, begun.minute, begun.utcoffset() is not None) == (0, 0, True)
    assert times.begin("12h", NOW) == NOW - timedelta(hours=12)


def test_bars() -> None:
    """The longest fills the room; what is not nothing is seen; nothing is nothing."""
    assert drawing.bar(Decimal(10), Decimal(10), 4) == "████"
    assert drawing.bar(5, 10, 3) == "█▌"
    assert drawing.bar(Decimal("0.0001"), Decimal(10), 4) == "▌"
    assert drawing.bar(0, 10, 4) == drawing.bar(0, 0, 4) == ""


def test_models(account: Account) -> None:
    """All, or one provider's; a wrong provider gets the nearest."""
    assert {model["owned_by"] for model in account.json("models", "--provider", "OpenAI")["data"]} == {"openai"}
    assert "claude" in account("models").out
    assert "did you mean openai?" in account("models", "--provider", "opnai", code=2).err
    for family, maker in (("grok", "xai"), ("claude", "anthropic"), ("Gemini", "google"), ("gpt", "openai")):
        assert f"did you mean {maker}?" in account("models", "--provider", family, code=2).err


def test_keys(account: Account) -> None:
    """A spend key with limits, shown once, and its row in the list."""
    words_ = ("keys", "create", "--provider", "openai", "--limit", "50/monthly", "--rpm", "60", "--expires", "30d")
    ran = account(*words_, "--model", "gpt-4o,gpt-5", "--requests", "1000/day", "--burst", "5", "--json")
    made = ran.json
    assert made["spend_limit"] == {"amount": "50", "cycle": "monthly"}
    assert made["request_limit"] == {"count": 1000, "cycle": "daily"}
    assert made["rate_limit"] == {"rpm": 60, "burst": 5}
    assert (made["allowed_providers"], made["allowed_models"]) == (["openai"], ["gpt-4o", "gpt-5"])
    assert made["request_shape"] == "openai"
    assert made["key"].startswith("lava_sk_")
    assert "only now" in ran.err
    listed = account("keys", "list")
    row = next(line for line in listed.out.splitlines() if made["spend_key_id"] in line)
    assert "$50.00 monthly, 1000 requests daily, 60 a minute" in row
    assert "$0.00" in row
    assert not leaks(listed.out, [made["key"]])
    assert made["spend_key_id"] in {key["spend_key_id"] for key in account.json("keys", "list")["data"]}
    assert account.json("keys", "create", "--provider", "anthropic")["request_shape"] == "anthropic"
    assert "only now" in account(*words_).err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--provider", "opeani"], "did you mean openai?"),
        (["--limit", "50/montly"], "did you mean monthly?"),
        (["--limit", "x/monthly"], "is an amount"),
        (["--requests", "1.5/day"], "is a whole number"),
        (["--burst", "3"], "goes with --rpm"),
        (["--expires", "later"], "is a time"),
        (["--expires", "2020-01-01"], "in the past"),
        (["--limit", "0/monthly"], "must be more than 0"),
        (["--limit=-5"], "must be more than 0"),
        (["--requests", "0/daily"], "is a whole number"),
    ],
)
def test_wrong_keys(account: Account, words: list[str], said: str) -> None:
    """Told before Lava is asked: exit code 2."""
    ran = account("keys", "create", *words, code=2)
    assert said in ran.err
    assert account.world.received == []


def test_checkout(account: Account) -> None:
    """A session for a plan or a bundle, in the names of either generation; what Lava gives is printed."""
    plan = ("checkout", "conn_demo", "--plan", "plan_pro", "--origin", "https://shop.example.com")
    made = account.json(*plan)
    assert (made["customer_id"], made["plan_id"], made["checkout_mode"]) == ("conn_demo", "plan_pro", "subscription")
    assert made["checkout_session_token"] in {each.token for each in account.world.account.checkouts.values()}
    assert "checkout_session_token" in account(*plan).out
    bundle = ("checkout", "conn_demo", "--bundle", "bundle_extra", "--origin", "https://shop.example.com")
    old = account.json(*bundle, "--old-names")
    assert (old["connection_id"], old["checkout_mode"]) == ("conn_demo", "credit_bundle")
    assert "no address to open" in account(*bundle, "--open").err
    assert (
        "give either --plan ID or --bundle ID"
        in account("checkout", "conn_demo", "--origin", "https://x.example.com", code=2).err
    )
    assert account("checkout", "--bundle", "b", "--origin", "https://x.example.com", code=2).err


def test_tables_at_a_terminal(account: Account) -> None:
    """The same words as in a pipe; ids are never cut off."""
    spend_key = account.json("keys", "list")["data"][0]["spend_key_id"]
    text = at_terminal(account.home, {**account.env, "TERM": "xterm-256color", "COLUMNS": "200"}, "keys", "list")
    assert spend_key in text
    assert "…" not in text


@pytest.mark.parametrize("look", [{}, {"NO_COLOR": "1"}])
def test_a_narrow_terminal(account: Account, look: dict[str, str]) -> None:
    """What has no room as a table is shown record by record, ids and all in one piece; a table that has room stays one."""
    env = {**account.env, "TERM": "xterm-256color", "COLUMNS": "40", **look}
    spend_key = account.json("keys", "list")["data"][0]["spend_key_id"]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", at_terminal(account.home, env, "keys", "list"))
    assert re.search(rf"^  id +{spend_key}\s*$", plain, re.MULTILINE)
    assert re.search(r"^  spent +\$1\.00\s*$", plain, re.MULTILINE)
    models = re.sub(r"\x1b\[[0-9;]*m", "", at_terminal(account.home, env, "models", "--provider", "openai"))
    assert re.search(r"^ +gpt-5 +openai\s*$", models, re.MULTILINE)
    assert ("\x1b" in at_terminal(account.home, env, "wallet")) == (not look)


# --- showing ---------------------------------------------------------------------------------------------------------


def test_only_meant_secrets_are_shown() -> None:
    """A secret of a record is masked unless the action was made to show it; so is what is only called like one."""
    value = "secret-" + "v4lue" * 4
    record = records.Connection.model_validate({"connection_id": "c", "connection_secret": value, "new_api_key": value})
    assert not leaks(json.dumps(rendering.plain(record)), [value])
    assert not leaks(str(rendering.flat(record)), [value])
    assert rendering.plain(record, lambda name: True)["connection_secret"] == value
    assert rendering.plain(Secret(value)) == "…" + value[-4:]


def test_what_lava_says_cannot_move_the_cursor(account: Account) -> None:
    """Names are whoever's: control characters are shown as escapes, a line end tears no table."""
    account("api", "customers", "create", "--name", "Eve\x1b[2J\nMallory", "--reference-id", "a\nb\u202e")
    ran = account("api", "customers", "list")
    assert "\x1b" not in ran.out
    assert "\u202e" not in ran.out
    assert len(ran.out.splitlines()) == 4
    assert "\x1b" not in account("connections").out


@pytest.mark.parametrize(
    ("amount", "shown"),
    [("0", "$0.00"), ("12.5", "$12.50"), ("1234567.891", "$1,234,567.89"), ("0.05", "$0.05"), ("0.999", "$0.999"), ("0.0001234", "$0.000123"), ("-3", "-$3.00"), ("1e30", "$1E+30"), (None, "")],
)  # fmt: skip
def test_dollars(amount: str | None, shown: str) -> None:
    """At least cents, and more digits where cents would say nothing."""
    assert dollars(None if amount is None else Decimal(amount)) == shown
