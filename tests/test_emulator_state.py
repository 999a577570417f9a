"""The emulator's state between two starts: what is kept, and a file that is none."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2
import pytest
from daemons import clean_environment

from proxy.emulator import Emulator, World, state_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_every_part_of_a_world_is_kept_or_known_not_to_be() -> None:
    """A new part of the world has to be put on one side or the other."""
    kept = set(json.loads(state_file.encode(World.demo()))["live"])
    assert kept == {"keys", "account", "objects", "billing"}
    not_kept = {"behaviour", "pending", "history", "sandbox", "clock"}
    assert kept | not_kept == {field.name for field in fields(World)}


def ask(emulator: Emulator, method: str, path: str, document: Any = None, **options: Any) -> Any:
    """One call with the merchant's key; it has to succeed."""
    headers = {"authorization": f"Bearer {emulator.world.secret_key}", "anthropic-version": "2023-06-01"}
    with httpx2.Client(base_url=emulator.base_url, trust_env=False, timeout=20.0, headers=headers) as client:
        answer = (
            client.request(method, path, json=document, **options)
            if document is not None
            else client.request(method, path, **options)
        )
    assert answer.status_code < 300, answer.text
    return answer.json()


def forward(url: str) -> str:
    return "forward?u=" + quote(url, safe="")


def test_a_world_of_everything_comes_back_as_it_was() -> None:
    """Customers, plans and who is on them, keys made since, money spent, files: the same document, the same objects."""
    with Emulator() as emulator:
        customer = ask(emulator, "POST", "customers", {"contact": {"phone": "+15550199", "email": "a@example.com"}})
        ask(
            emulator,
            "POST",
            "meters",
            {"name": "New", "rate_type": "fixed", "tier_type": "requests", "tiers": [{"start": "0", "rate": "0.25"}]},
        )
        subscribed = {"customer_id": customer["customer_id"], "plan_id": "plan_free"}
        ask(emulator, "POST", "subscriptions", subscribed)
        ask(emulator, "POST", "secret_keys", {"name": "second"})
        ask(emulator, "POST", "webhooks", {"name": "hook", "url": "https://www.example.com/hook"})
        chat = {"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}]}
        ask(emulator, "POST", forward("https://api.openai.com/v1/chat/completions"), chat)
        ask(emulator, "POST", forward("https://api.openai.com/v1/responses"), {"model": "gpt-5", "input": "hi"})
        ask(emulator, "POST", forward("https://api.openai.com/v1/files"), files={"file": ("a", bytes(range(256)))})
        params = {"model": "claude-opus-4-6", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        requests = {"requests": [{"custom_id": "one", "params": params}]}
        ask(emulator, "POST", forward("https://api.anthropic.com/v1/messages/batches"), requests)
        google = "https://generativelanguage.googleapis.com"
        ask(emulator, "POST", forward(f"{google}/upload/v1beta/files"), content=b"x")
        cache = {"model": "models/gemini-2.5-flash", "contents": [{"parts": [{"text": "x"}]}]}
        ask(emulator, "POST", forward(f"{google}/v1beta/cachedContents"), cache)
        world = emulator.world
    kept = state_file.encode(world)
    again = state_file.decode(kept)
    assert state_file.encode(again) == kept
    assert again.account.wallet_balance == world.account.wallet_balance < Decimal(20)
    assert list(again.key_values()) == list(world.key_values())
    assert again.objects.files.popitem()[1].content == bytes(range(256))
    (subscription,) = again.account.subscriptions.values()
    assert subscription.plan is again.account.plans[subscription.plan.plan_id]
    assert again.sandbox is not None
    assert again.sandbox.keys.revoked_keys is again.keys.revoked_keys
    # Identifiers go on where they stopped: none is given twice.
    assert again.objects.next_id("x") == world.objects.next_id("x")


@contextmanager
def started(folder: Path, state: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """``lava-proxy emulator --state``, and what it says of itself."""
    command = [sys.executable, "-m", "proxy", "emulator", "--port", "0", "--json", "--state", str(state)]
    process = subprocess.Popen(command, env=clean_environment(folder), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = process.stdout.readline()
        while not re.search(r"^}$", text, re.MULTILINE):
            line = process.stdout.readline()
            assert line, text
            text += line
        yield process, json.loads(text)
    finally:
        process.kill()
        process.communicate(timeout=20)


def spend(said: dict[str, Any]) -> None:
    """One request that costs the merchant something."""
    answer = httpx2.post(
        f"{said['base_url']}/{forward('https://api.openai.com/v1/chat/completions')}",
        json={"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}]},
        headers={"authorization": f"Bearer {said['secret_key']}"},
        trust_env=False,
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_keys_and_money_last_from_one_start_to_the_next(tmp_path: Path, number: signal.Signals) -> None:
    """However it ended; the file is its owner's alone, and nothing else lies beside it."""
    state = tmp_path / "folder" / "state.json"
    with started(tmp_path, state) as (process, first):
        assert first["state"] == str(state)
        assert state.stat().st_mode & 0o777 == 0o600
        before = state.read_bytes()
        spend(first)
        while number == signal.SIGKILL and state.read_bytes() == before:
            assert process.poll() is None
        process.send_signal(number)
        process.wait(20)
    with started(tmp_path, state) as (_, second):
        assert Decimal(second.pop("wallet_balance")) < Decimal(first.pop("wallet_balance"))
        assert {**second, "base_url": ""} == {**first, "base_url": ""}
        spend(second)
    assert [path.name for path in state.parent.iterdir()] == ["state.json"]


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "cut short": state_file.encode(World.demo())[:-20],
    "another program's": b'{"version": 1, "secret_key": "aks-not-to-be-shown"}',
    "a list": b"[]",
    "a number for a key": state_file.encode(World.demo()).replace(b'"wallet_id":"wal_demo"', b'"wallet_id":7'),
    "a field too many": state_file.encode(World.demo()).replace(b'"wallet_id"', b'"more":1,"wallet_id"', 1),
    "a later version": state_file.encode(World.demo()).replace(b'"lava_proxy_emulator":2', b'"lava_proxy_emulator":3'),
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
}


def run(folder: Path, state: Path) -> subprocess.CompletedProcess[str]:
    """The command, where it must end by itself."""
    command = [sys.executable, "-m", "proxy", "emulator", "--port", "0", "--state", str(state)]
    return subprocess.run(
        command, env=clean_environment(folder), capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_no_state_is_known_for_that(what: str) -> None:
    """Whatever is wrong with it, without an exception of another kind."""
    with pytest.raises(state_file.StateFileError):
        state_file.decode(DAMAGED[what])


@pytest.mark.parametrize("what", ["empty", "another program's", "binary"])
def test_a_file_that_is_no_state_is_refused_and_left_alone(tmp_path: Path, what: str) -> None:
    """78, the file's name, and what to do; nothing of what it holds."""
    state = tmp_path / "state.json"
    state.write_bytes(DAMAGED[what])
    state.chmod(0o600)
    ran = run(tmp_path, state)
    assert (ran.returncode, ran.stdout) == (78, "")
    assert ran.stderr.startswith(f"lava-proxy: {state} holds no state of an emulator, or a damaged one")
    assert "Name another file" in ran.stderr
    assert "not-to-be-shown" not in ran.stderr
    assert state.read_bytes() == DAMAGED[what]


def test_a_place_that_cannot_hold_a_state_is_told(tmp_path: Path) -> None:
    """A folder, a file that others may change: 78; a folder that cannot be made: 1."""
    assert run(tmp_path, tmp_path).returncode == 78
    state = tmp_path / "state.json"
    state.write_bytes(state_file.encode(World.demo()))
    state.chmod(0o666)
    ran = run(tmp_path, state)
    assert (ran.returncode, "chmod" in ran.stderr) == (78, True)
    ran = run(tmp_path, state / "below" / "state.json")
    assert (ran.returncode, "cannot be written" in ran.stderr) == (1, True)
