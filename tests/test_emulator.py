"""The offline Lava over real sockets: credentials, money, the players, the translation, and every fault.

The clients here are httpx2 and raw sockets; the official SDKs meet the emulator in ``test_clients.py``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2
import pytest
import zstandard
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from profiles import examples

import proxy
from proxy.emulator import Emulator, World, create_emulator, credentials, serve_forever
from proxy.emulator.exchange import pieces
from proxy.emulator.faults import FAULTS, find
from proxy.emulator.records import StoredConnection
from proxy.emulator.structured_output import smallest_value
from proxy.protocol.dialects import Dialect
from proxy.protocol.providers import BUILTIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.emulator.state import ReceivedRequest

OPENAI = "https://api.openai.com/v1"
ANTHROPIC = "https://api.anthropic.com/v1"
GOOGLE = "https://generativelanguage.googleapis.com"
GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash"

QUESTION = [{"role": "user", "content": "one two three four"}]
ANSWER = "You said: one two three four"


class Lava:
    """A client of one emulator: what a proxy would send, spelled out."""

    def __init__(self, emulator: Emulator) -> None:
        self.world = emulator.world
        self.port = emulator.port
        self.http = httpx2.Client(base_url=emulator.base_url, trust_env=False, timeout=20.0)

    def token(self, **fields: Any) -> str:
        """A forward token of the merchant with these fields, as the SDK makes it."""
        text = json.dumps({"secret_key": self.world.secret_key, **fields}, separators=(",", ":"))
        return base64.b64encode(text.encode()).decode()

    def customer(self, connection: str = "conn_demo") -> str:
        return self.token(connection_id=connection, meter_slug="demo-chat")

    def forward(
        self,
        url: str,
        document: Any = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        method: str | None = None,
        **rest: Any,
    ) -> httpx2.Response:
        bearer = {"authorization": f"Bearer {token or self.token()}", "anthropic-version": "2023-06-01"}
        return self.http.request(
            method or ("GET" if document is None and not rest else "POST"),
            "forward?u=" + quote(url, safe=""),
            json=document,
            headers=bearer | (headers or {}),
            **rest,
        )

    def chat(self, *, token: str | None = None, fault: str | None = None, **more: Any) -> httpx2.Response:
        document = {"model": "gpt-5", "messages": QUESTION, **more}
        headers = {"x-emulator-fault": fault} if fault else None
        return self.forward(f"{OPENAI}/chat/completions", document, token=token, headers=headers)

    @property
    def last(self) -> ReceivedRequest:
        return self.world.received[-1]


@pytest.fixture
def lava(emulator: Emulator) -> Iterator[Lava]:
    client = Lava(emulator)
    with client.http:
        yield client


def events(text: str) -> list[Any]:
    """The JSON of every event of an SSE text; ``[DONE]`` as that string."""
    found = []
    for block in re.split(r"\r?\n\r?\n", text):
        data = [line[6:] for line in block.splitlines() if line.startswith("data: ")]
        if data:
            found.append(data[0] if data[0] == "[DONE]" else json.loads(data[0]))
    return found


def lava_code(answer: httpx2.Response) -> str:
    """The code in Lava's own envelope, which must be whole."""
    error = answer.json()["error"]
    assert set(error) == {"message", "code", "status"}
    assert error["status"] == answer.status_code
    assert error["message"]
    return str(error["code"])


class RawClient:
    """One HTTP/1.1 request on a socket, read as bytes: httpx2 would hide how an answer ends."""

    def __init__(self, lava: Lava, url: str, document: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        lines = [
            f"POST /v1/forward?u={quote(url, safe='')} HTTP/1.1",
            f"Host: 127.0.0.1:{lava.port}",
            f"Authorization: Bearer {lava.token()}",
            "Anthropic-Version: 2023-06-01",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        self.socket = socket.create_connection(("127.0.0.1", lava.port), timeout=20.0)
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.seen = b""

    def until(self, mark: bytes) -> None:
        """Read until ``mark`` was seen."""
        while mark not in self.seen:
            got = self.socket.recv(65536)
            assert got, self.seen
            self.seen += got

    def rest(self) -> bytes:
        """Everything up to the end of the connection, however it ends."""
        with contextlib.suppress(ConnectionResetError):
            while got := self.socket.recv(65536):
                self.seen += got
        return self.seen

    def leave(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def stream_request(**more: Any) -> dict[str, Any]:
    return {"model": "gpt-5", "messages": QUESTION, "stream": True, **more}


# The credential ---


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("authorization", "Bearer {}"),
        ("authorization", "bearer {}"),
        ("x-api-key", "{}"),
        ("x-goog-api-key", "{}"),
        ("xi-api-key", "{}"),
    ],
)
def test_the_credential_is_read_from_every_documented_header(lava: Lava, header: str, form: str) -> None:
    """A forward token works in each header that Lava documents, and the record says where it stood."""
    token = lava.customer()
    answer = lava.http.post(
        "forward?u=" + quote(f"{OPENAI}/chat/completions", safe=""),
        json={"model": "gpt-5", "messages": QUESTION},
        headers={header: form.format(token)},
    )
    assert answer.status_code == 200
    assert (lava.last.credential, lava.last.credential_place) == (token, header)
    assert lava.last.token == {
        "secret_key": lava.world.secret_key,
        "connection_id": "conn_demo",
        "meter_slug": "demo-chat",
    }


def test_the_credential_may_stand_in_the_query(lava: Lava) -> None:
    """Google's ``?key=`` carries a forward token as well."""
    address = f"forward?u={quote(GEMINI + ':generateContent', safe='')}&key={quote(lava.token(), safe='')}"
    answer = lava.http.post(address, json={"contents": [{"parts": [{"text": "hi"}]}]})
    assert answer.status_code == 200
    assert lava.last.credential_place == "key"


@pytest.mark.parametrize("which", ["secret_key", "test_key"])
def test_raw_secret_keys_call_as_the_merchant(lava: Lava, which: str) -> None:
    """Both of the merchant's keys are good as they are, and the wallet pays."""
    assert lava.chat(token=getattr(lava.world, which)).status_code == 200
    assert (lava.last.payer, lava.last.token) == ("merchant", None)


BAD_TOKENS = {
    "no base64": "not a token at all",
    "url-safe base64": base64.urlsafe_b64encode(b'{"secret_key":"\xc3\xbf\xc3\xbf\xc3\xbf"}').decode(),
    "no padding": base64.b64encode(b'{"a":1}').decode().rstrip("="),
    "no JSON": base64.b64encode(b"hello").decode(),
    "a list": base64.b64encode(b"[]").decode(),
    "nesting": base64.b64encode(b"[" * 100_000).decode(),
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_token_that_is_none_is_401(lava: Lava, token: str) -> None:
    """Whatever is not padded standard base64 of a JSON object is refused in Lava's envelope."""
    headers = {"x-api-key": token}
    answer = lava.http.post("forward?u=https%3A%2F%2Fapi.openai.com%2Fv1%2Fmodels", headers=headers)
    assert answer.status_code == 401
    assert lava_code(answer) == "invalid_forward_token"


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"secret_key": "aks_live_" + "0" * 24}, 401, "invalid_secret_key"),
        ({"secret_key": None}, 401, "invalid_forward_token"),
        ({"secret_key": 5}, 401, "invalid_forward_token"),
        ({"connection_id": "conn_nobody", "meter_slug": "demo-chat"}, 401, "connection_not_found"),
        ({"customer_id": "conn_nobody", "meter_slug": "demo-chat"}, 401, "connection_not_found"),
        ({"meter_slug": "websit-chat"}, 401, "meter_not_found"),
        ({"customer_id": "conn_demo", "meter_slug": "websit-chat"}, 401, "meter_not_found"),
        ({"customer_id": "conn_demo"}, 400, "meter_required"),
        ({"customer_id": "conn_demo", "connection_id": "conn_demo"}, 401, "invalid_forward_token"),
        ({"product_secret": "x"}, 401, "invalid_forward_token"),
        ({"disable_billing": "yes"}, 401, "invalid_forward_token"),
    ],
)
def test_a_wrong_field_in_a_token_is_named(lava: Lava, fields: dict[str, Any], status: int, code: str) -> None:
    """Unknown keys, connections and meters and impossible fields are refused, each with a code of its own."""
    answer = lava.chat(token=lava.token(**fields))
    assert answer.status_code == status
    assert lava_code(answer) == code
    assert lava.last.charged == 0


def test_no_credential_and_a_revoked_one_are_401(lava: Lava) -> None:
    """Nothing sent, and a key taken back while the emulator runs, are both refused."""
    bare = lava.http.post("forward?u=https%3A%2F%2Fapi.openai.com%2Fv1%2Fmodels")
    assert (bare.status_code, lava_code(bare)) == (401, "missing_credentials")
    assert lava.chat().status_code == 200
    lava.world.keys.revoked_keys.add(lava.world.secret_key)
    assert lava_code(lava.chat()) == "invalid_secret_key"


def test_every_token_of_the_real_sdk_is_understood() -> None:
    """All recorded tokens, of each SDK generation, decode to their JSON and name a payer in a world that knows them."""
    vectors = json.loads((Path(__file__).parent / "vectors" / "forward_tokens.json").read_text("utf-8"))
    assert len(vectors) >= 50
    for vector in vectors:
        world = World.demo(secret_key=vector["secret_key"])
        options = vector["options"] or {}
        name = options.get("customer_id") or options.get("connection_id")
        if name:
            world.account.connections[name] = StoredConnection(name, Decimal(1))
        world.account.add_meter(options.get("meter_slug") or "none")
        received = world.history.add("POST", "/", [(b"Authorization", b"Bearer " + vector["token"].encode())], 1)
        credentials.note(received, {})
        assert credentials.check(world, received).payer in ("merchant", "customer", "provider_account")
        assert received.token == json.loads(vector["json"])


# Who pays ---


@pytest.mark.parametrize(
    ("fields", "payer"),
    [
        ({}, "merchant"),
        ({"meter_slug": "internal"}, "merchant"),
        ({"customer_id": None, "meter_slug": "internal", "disable_billing": False}, "merchant"),
        ({"connection_id": "conn_demo", "meter_slug": "demo-chat"}, "customer"),
        ({"customer_id": "conn_demo", "meter_slug": "demo-chat"}, "customer"),
        ({"customer_id": "conn_demo", "meter_slug": "demo-chat", "disable_billing": True}, "merchant"),
        (
            {"customer_id": "conn_demo", "meter_slug": "demo-chat", "provider_key": "mine"},
            "provider_account",
        ),
        ({"connection_id": None, "meter_slug": None, "provider_key": "mine"}, "provider_account"),
    ],
)
def test_the_payer_follows_the_token(lava: Lava, fields: dict[str, Any], payer: str) -> None:
    """Exactly one account is debited, by what the record says, and none for an own provider key."""
    world = lava.world
    before = {"merchant": world.account.wallet_balance, "customer": world.account.connections["conn_demo"].balance}
    assert lava.chat(token=lava.token(**fields)).status_code == 200
    after = {"merchant": world.account.wallet_balance, "customer": world.account.connections["conn_demo"].balance}
    assert lava.last.payer == payer
    moved = {name: before[name] - after[name] for name in before if before[name] != after[name]}
    assert moved == ({} if payer == "provider_account" else {payer: lava.last.charged})
    assert (lava.last.charged > 0) is (payer != "provider_account")


def test_an_empty_balance_is_402(lava: Lava) -> None:
    """A customer without money is refused by name; the merchant's wallet is not touched and reading is free."""
    answer = lava.chat(token=lava.customer("conn_empty"))
    assert (answer.status_code, lava_code(answer)) == (402, "insufficient_balance")
    assert "conn_empty" in answer.json()["error"]["message"]
    assert lava.world.account.wallet_balance == Decimal("20.00")
    assert lava.forward(f"{OPENAI}/models", token=lava.customer("conn_empty")).status_code == 200
    lava.world.account.wallet_balance = Decimal(0)
    answer = lava.chat()
    assert (answer.status_code, lava_code(answer)) == (402, "insufficient_balance")
    assert "wallet" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("url", "document", "shape"),
    [
        (f"{OPENAI}/chat/completions", {"model": "m", "messages": QUESTION}, {"message", "type", "param", "code"}),
        (f"{ANTHROPIC}/messages", {"model": "m", "max_tokens": 5, "messages": QUESTION}, {"type", "message"}),
        (f"{GEMINI}:generateContent", {"contents": [{"parts": [{"text": "x"}]}]}, {"code", "message", "status"}),
    ],
)
@pytest.mark.parametrize(("kind", "status"), [("rejected", 401), ("unfunded", 402)])
def test_a_bad_provider_key_gets_the_providers_own_words(
    lava: Lava, url: str, document: dict[str, Any], shape: set[str], kind: str, status: int
) -> None:
    """A provider key that the provider refuses gives 401, an unpaid one 402, in that provider's shape."""
    keys = lava.world.keys.rejected_provider_keys if kind == "rejected" else lava.world.keys.unfunded_provider_keys
    answer = lava.forward(url, document, token=lava.token(provider_key=next(iter(keys))))
    assert answer.status_code == status
    assert set(answer.json()["error"]) == shape


# Spend keys and Lava's own endpoints ---


def test_spend_keys_work_on_lavas_own_endpoints(lava: Lava) -> None:
    """Each spend key serves its own request shape, and what it spends is counted on it and on the wallet."""
    keys = lava.world.keys.spend_keys
    chat = {"model": "claude-opus-4-6", "messages": QUESTION}
    answer = lava.http.post("chat/completions", json=chat, headers={"authorization": f"Bearer {keys['openai']}"})
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    answer = lava.http.post("messages", json={**chat, "max_tokens": 9}, headers={"x-api-key": keys["anthropic"]})
    assert answer.json()["content"] == [{"type": "text", "text": ANSWER}]
    spent = sum(record.spent for record in lava.world.keys.spend_key_records if record.name != "exhausted")
    assert spent == Decimal("20.00") - lava.world.account.wallet_balance > 0


def test_a_spend_key_of_the_other_shape_is_403(lava: Lava) -> None:
    """Both mismatches are refused in Lava's envelope."""
    keys = lava.world.keys.spend_keys
    for path, name in (("chat/completions", "anthropic"), ("messages", "openai")):
        document = {"model": "m", "max_tokens": 5, "messages": QUESTION}
        answer = lava.http.post(path, json=document, headers={"authorization": f"Bearer {keys[name]}"})
        assert answer.status_code == 403
        assert name in answer.json()["error"]["message"]
        lava_code(answer)


def test_an_exhausted_spend_key_hits_its_cap(lava: Lava) -> None:
    """The message of a reached cap is the one that Lava is known to send."""
    headers = {"authorization": f"Bearer {lava.world.keys.spend_keys['exhausted']}"}
    answer = lava.http.post("chat/completions", json={"model": "m", "messages": QUESTION}, headers=headers)
    assert answer.status_code == 402
    assert answer.json()["error"]["message"] == "Service key spend limit exceeded."


def test_the_model_list_needs_no_credential(lava: Lava) -> None:
    """``GET /v1/models`` is OpenAI's list for everybody, narrowed for a spend key with allowed providers."""
    listed = lava.http.get("models").json()
    assert listed["object"] == "list"
    assert {"gpt-5", "claude-opus-4-6", "gemini-2.5-flash"} <= {model["id"] for model in listed["data"]}
    record = lava.world.keys.spend_key_records[0]
    record.allowed_providers = frozenset({"groq"})
    narrow = lava.http.get("models", headers={"authorization": f"Bearer {record.key}"}).json()
    assert {model["owned_by"] for model in narrow["data"]} == {"groq"}


def test_the_wallet_shows_its_balance_to_a_secret_key(lava: Lava) -> None:
    """The balance is a decimal string; a spend key may not see it."""
    assert lava.http.get("wallet", headers={"authorization": f"Bearer {lava.world.secret_key}"}).json() == {
        "wallet_id": "wal_demo",
        "balance": "20.00",
    }
    other = {"authorization": f"Bearer {lava.world.keys.spend_keys['openai']}"}
    assert lava.http.get("wallet", headers=other).status_code == 401


# Targets ---


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_provider_of_the_table_answers(lava: Lava, name: str) -> None:
    """Each of the 28 base addresses has a player that speaks the table's dialect there."""
    provider = BUILTIN[name]
    document: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": QUESTION}
    path = {Dialect.OPENAI: "chat/completions", Dialect.ANTHROPIC: "messages"}.get(provider.dialect)
    if provider.dialect is Dialect.GOOGLE:
        path, document = "models/m:generateContent", {"contents": [{"parts": [{"text": "one two three four"}]}]}
    elif provider.dialect is Dialect.OTHER:
        path, document = "text-to-speech/voice", {"text": "one two three four"}
    answer = lava.forward(f"{provider.base_url}/{path}", document)
    assert answer.status_code == 200
    assert b"one two three four" in answer.content
    assert lava.last.url == f"{provider.base_url}/{path}"


@pytest.mark.parametrize(
    "url",
    [
        "https://nowhere.example.org/v1/chat/completions",
        "http://api.openai.com/v1/chat/completions",
        "https://api.openai.com:8443/v1/chat/completions",
        "https://user@api.openai.com/v1/chat/completions",
        "https://api.openai.com.evil.example/v1/chat/completions",
        "https://[::1",
        "api.openai.com/v1/chat/completions",
        "ftp://api.openai.com/",
    ],
)
def test_an_unknown_target_is_not_supported(lava: Lava, url: str) -> None:
    """Whatever is not https at a known host gets the documented code."""
    answer = lava.forward(url, {"model": "m", "messages": QUESTION})
    assert (answer.status_code, lava_code(answer)) == (400, "forward_endpoint_not_supported")


def test_a_known_host_refuses_an_unknown_path_itself(lava: Lava) -> None:
    """A wrong path at a provider is that provider's 404, so that a wrongly built address shows."""
    answer = lava.forward("https://api.groq.com/v1/chat/completions", {"model": "m", "messages": QUESTION})
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert lava.forward(f"{ANTHROPIC}/nothing", {}).json()["type"] == "error"
    assert lava.forward(f"{OPENAI}/chat/completions", method="GET").status_code == 405
    unknown = lava.forward(f"{OPENAI}/nowhere")  # a wrong address is no wrong model
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, None)


def test_a_provider_of_ones_own_answers_on_any_port(lava: Lava) -> None:
    """api.example.com speaks what the path asks for, and echoes everything else."""
    chat = {"model": "m", "messages": QUESTION, "max_tokens": 5}
    base = "https://api.example.com:8443"
    assert lava.forward(f"{base}/inference/v1/chat/completions", chat).json()["object"] == "chat.completion"
    assert lava.forward(f"{base}/v1/messages", chat).json()["type"] == "message"
    echoed = lava.forward(f"{base}/search?q=a%20b&q2=", {"x": 1}).json()
    assert echoed == {"method": "POST", "path": "/search", "query": {"q": "a b", "q2": ""}, "bytes": 7}


def test_u_is_taken_encoded_and_as_the_sdk_writes_it(lava: Lava) -> None:
    """The SDK's ``providers`` map gives an unencoded ``u``; a missing one is 400."""
    headers = {"authorization": f"Bearer {lava.token()}"}
    document = {"model": "m", "messages": QUESTION}
    for address in (f"forward?u={OPENAI}/chat/completions", f"forward/openai?x=1&u={OPENAI}/chat/completions"):
        assert lava.http.post(address, json=document, headers=headers).status_code == 200
        assert lava.last.url == f"{OPENAI}/chat/completions"
    assert lava_code(lava.http.post("forward", json=document, headers=headers)) == "missing_url"


def test_anthropic_wants_its_version_header(lava: Lava) -> None:
    """Without ``anthropic-version`` Anthropic itself says no; Lava's own messages endpoint does not ask for it."""
    document = {"model": "m", "max_tokens": 9, "messages": QUESTION}
    headers = {"authorization": f"Bearer {lava.token()}"}
    address = "forward?u=" + quote(f"{ANTHROPIC}/messages", safe="")
    answer = lava.http.post(address, json=document, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "anthropic-version: header is required"
    assert lava.http.post("messages", json=document, headers=headers).status_code == 200


def test_unknown_addresses_are_404_in_lavas_envelope(lava: Lava) -> None:
    """Also below known ones, and with wrong methods 405; the request id is on all of them."""
    for path in ("/", "/v2/forward", "/v1/chat", "/v1/embeddings", "/v1//forward"):
        answer = lava.http.get(f"http://127.0.0.1:{lava.port}{path}")
        assert (answer.status_code, lava_code(answer)) == (404, "not_found")
        assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers["x-lava-request-id"])
    headers = {"authorization": f"Bearer {lava.token()}"}
    for method, path in (("GET", "chat/completions"), ("DELETE", "messages"), ("POST", "models")):
        assert lava.http.request(method, path, headers=headers).status_code == 405


def test_metadata_is_read_and_checked(lava: Lava) -> None:
    """``x-lava-metadata`` has the limits of Lava's reference, and the record keeps the pairs."""

    def send(metadata: str) -> httpx2.Response:
        return lava.forward(f"{OPENAI}/models", headers={"x-lava-metadata": metadata})

    assert send('{"team":"web","run_1":"7"}').status_code == 200
    assert lava.last.metadata == {"team": "web", "run_1": "7"}
    too_many = json.dumps({f"k{at}": "v" for at in range(101)})
    for bad in ("[]", "{", '{"a":1}', '{"a":""}', '{"a b":"c"}', json.dumps({"a": "v" * 256}), too_many):
        assert lava_code(send(bad)) == "invalid_metadata"


# The record ---


def test_a_request_is_recorded_as_it_was_written(lava: Lava) -> None:
    """Target, header spelling and order, duplicates and body are those of the wire."""
    url = f"{OPENAI}/chat/completions?a=%2F&b"
    headers = {"X-MiXed": "one", "x-mixed": "two", "Connection": "close"}
    with RawClient(lava, url, {"model": "gpt-5", "messages": QUESTION}, headers) as raw:
        seen = raw.rest()
    record = lava.last
    assert record.target == f"/v1/forward?u={quote(url, safe='')}"
    assert (record.url, record.path) == (url, "/v1/forward")
    names = [name for name, _ in record.headers]
    wanted = [b"Host", b"Authorization", b"Anthropic-Version", b"Content-Length"]
    assert names == [*wanted, b"X-MiXed", b"x-mixed", b"Connection"]
    assert record.header_values("x-mixed") == ["one", "two"]
    assert json.loads(record.body)["model"] == record.model == "gpt-5"
    assert (record.status, record.finished, record.cancelled, record.cut) == (200, True, False, False)
    assert seen.endswith(bytes(record.sent))


def test_compressed_bodies_are_understood_and_kept_as_they_came(lava: Lava) -> None:
    """gzip, deflate, br and zstd requests are decoded for the player; the record keeps the sent bytes."""
    import brotli  # type: ignore[import-untyped]

    plain = json.dumps({"model": "gpt-5", "messages": QUESTION}).encode()
    frames = zstandard.ZstdCompressor(write_content_size=False)
    for coding, body in {
        "gzip": gzip.compress(plain),
        "deflate": zlib.compress(plain),
        "br": brotli.compress(plain),
        "zstd": frames.compress(plain),
        "gzip, zstd": frames.compress(gzip.compress(plain)),
    }.items():
        headers = {"content-encoding": coding, "content-type": "application/json"}
        answer = lava.forward(f"{OPENAI}/chat/completions", headers=headers, content=body)
        assert answer.status_code == 200, coding
        assert lava.last.body == body
    for coding in ("gzip", "lzw"):
        answer = lava.forward(f"{OPENAI}/embeddings", headers={"content-encoding": coding}, content=b"x")
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_only_so_many_requests_are_kept(lava: Lava) -> None:
    """``keep`` bounds the memory of an emulator that runs for days: the oldest record goes first."""
    lava.world.behaviour.keep = 3
    for _ in range(5):
        lava.http.get("models")
    assert [record.number for record in lava.world.received] == sorted(r.number for r in lava.world.received)
    assert len(lava.world.received) == 3


def test_a_body_over_the_limit_is_413(lava: Lava) -> None:
    """The limit is the world's, and the answer is Lava's."""
    lava.world.behaviour.max_body_bytes = 1000
    answer = lava.forward(f"{OPENAI}/embeddings", {"model": "m", "input": "x" * 2000})
    assert (answer.status_code, lava_code(answer)) == (413, "request_too_large")


# The players ---


def test_openai_chat_counts_its_tokens_in_both_forms(lava: Lava) -> None:
    """Whole and streamed answers say the same; the usage chunk comes exactly when asked for."""
    whole = lava.chat().json()
    assert whole["choices"][0]["message"]["content"] == ANSWER
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 1
    asked: list[tuple[dict[str, Any], int]] = [
        ({}, 0),
        ({"stream_options": {"include_usage": False}}, 0),
        ({"stream_options": {"include_usage": True}}, 1),
    ]
    for options, counted in asked:
        answer = lava.chat(stream=True, **options)
        assert answer.headers["content-type"].startswith("text/event-stream")
        *chunks, done = events(answer.text)
        assert done == "[DONE]"
        tails = [chunk for chunk in chunks if not chunk["choices"]]
        assert len(tails) == counted
        assert all(tail["usage"] == usage for tail in tails)
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        assert "".join(choice["delta"].get("content") or "" for choice in choices) == ANSWER
        assert [choice["finish_reason"] for choice in choices][-1] == "stop"
        assert len(choices) >= 5


def test_openai_responses_stream_from_created_to_completed(lava: Lava) -> None:
    """The typed events are numbered, carry the text, and end in ``response.completed`` with usage."""
    whole = lava.forward(f"{OPENAI}/responses", {"model": "gpt-5", "input": "one two three four"}).json()
    assert whole["output"][0]["content"][0]["text"] == ANSWER
    document = {"model": "gpt-5", "input": QUESTION, "stream": True}
    found = events(lava.forward(f"{OPENAI}/responses", document).text)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert (found[0]["type"], found[-1]["type"]) == ("response.created", "response.completed")
    deltas = [event["delta"] for event in found if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert found[-1]["response"]["usage"] == whole["usage"]


def test_openai_completions(lava: Lava) -> None:
    """The old completions endpoint answers whole and streamed."""
    document = {"model": "gpt-3.5-turbo-instruct", "prompt": "one two three four"}
    assert lava.forward(f"{OPENAI}/completions", document).json()["choices"][0]["text"] == ANSWER
    *chunks, done = events(lava.forward(f"{OPENAI}/completions", {**document, "stream": True}).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == ANSWER
    assert done == "[DONE]"


def test_openai_embeddings_are_the_same_in_both_encodings(lava: Lava) -> None:
    """Base64 holds little-endian 32-bit floats equal to the plain list, one vector per input."""
    document = {"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 5}
    plain = lava.forward(f"{OPENAI}/embeddings", document).json()["data"]
    packed = lava.forward(f"{OPENAI}/embeddings", {**document, "encoding_format": "base64"}).json()["data"]
    unpacked = [list(struct.unpack("<5f", base64.b64decode(one["embedding"]))) for one in packed]
    assert [one["embedding"] for one in plain] == unpacked
    assert unpacked[0] != unpacked[1]
    assert len(lava.forward(f"{OPENAI}/embeddings", {"model": "m", "input": [1, 2]}).json()["data"]) == 1


def test_openai_sound_and_pictures(lava: Lava) -> None:
    """Speech is binary with every byte value, a transcription reads its upload, an image is a PNG."""
    document = {"model": "tts-1", "voice": "alloy", "input": "hello", "response_format": "wav"}
    spoken = lava.forward(f"{OPENAI}/audio/speech", document)
    assert spoken.headers["content-type"] == "audio/wav"
    assert set(range(256)) <= set(spoken.content)
    sound = b"\x00\r\n--\r\n\xff"
    heard = lava.forward(
        f"{OPENAI}/audio/transcriptions", files={"file": ("a.wav", sound)}, data={"model": "whisper-1"}
    )
    assert heard.json()["text"] == f"You said: {len(sound)} bytes of a.wav"
    assert lava.last.model == "whisper-1"
    image = lava.forward(f"{OPENAI}/images/generations", {"model": "gpt-image-1", "prompt": "x", "n": 2}).json()
    assert len(image["data"]) == 2
    assert base64.b64decode(image["data"][0]["b64_json"]).startswith(b"\x89PNG")
    checked = lava.forward(f"{OPENAI}/moderations", {"input": ["a", "b"]}).json()
    assert [result["flagged"] for result in checked["results"]] == [False, False]


def test_openai_files_and_batches(lava: Lava) -> None:
    """An uploaded file can be listed, read, used for a batch and deleted; binary content comes back whole."""
    content = bytes(range(256)) + b"\r\n--boundary\r\n"
    made = lava.forward(f"{OPENAI}/files", files={"file": ("b.jsonl", content)}, data={"purpose": "batch"}).json()
    assert (made["filename"], made["bytes"], made["purpose"]) == ("b.jsonl", len(content), "batch")
    assert lava.forward(f"{OPENAI}/files?purpose=batch").json()["data"] == [made]
    assert lava.forward(f"{OPENAI}/files?purpose=other").json()["data"] == []
    assert lava.forward(f"{OPENAI}/files/{made['id']}").json() == made
    assert lava.forward(f"{OPENAI}/files/{made['id']}/content").content == content
    document = {"input_file_id": made["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = lava.forward(f"{OPENAI}/batches", document).json()
    assert lava.forward(f"{OPENAI}/batches/{batch['id']}").json() == batch
    cancelled = lava.forward(f"{OPENAI}/batches/{batch['id']}/cancel", method="POST").json()
    assert cancelled["status"] == "cancelling"
    assert lava.forward(f"{OPENAI}/batches").json()["data"][0]["id"] == batch["id"]
    assert lava.forward(f"{OPENAI}/files/{made['id']}", method="DELETE").json()["deleted"] is True
    assert lava.forward(f"{OPENAI}/files/{made['id']}").status_code == 404


def test_anthropic_messages_in_both_forms(lava: Lava) -> None:
    """The typed events rebuild the whole message, and counting tokens agrees with the usage."""
    document = {"model": "claude-opus-4-6", "max_tokens": 9, "system": "be brief", "messages": QUESTION}
    whole = lava.forward(f"{ANTHROPIC}/messages", document).json()
    assert whole["content"] == [{"type": "text", "text": ANSWER}]
    counted = lava.forward(f"{ANTHROPIC}/messages/count_tokens?beta=true", document).json()
    assert counted == {"input_tokens": whole["usage"]["input_tokens"]}
    answer = lava.forward(f"{ANTHROPIC}/messages?beta=true", {**document, "stream": True})
    found = events(answer.text)
    assert (found[0]["type"], found[-1]["type"]) == ("message_start", "message_stop")
    deltas = [event["delta"]["text"] for event in found if event["type"] == "content_block_delta"]
    assert "".join(deltas) == ANSWER
    assert found[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert re.findall(r"^event: (\S+)$", answer.text, re.MULTILINE) == [event["type"] for event in found]
    assert lava.forward(f"{ANTHROPIC}/models").json()["data"][0]["type"] == "model"


def test_google_streams_in_both_framings(lava: Lava) -> None:
    """With ``alt=sse`` events, without one JSON array; the finish reason and the usage come with the last piece."""
    document = {"contents": [{"role": "user", "parts": [{"text": "one two three four"}]}]}
    whole = lava.forward(f"{GEMINI}:generateContent", document).json()
    assert whole["candidates"][0]["content"]["parts"][0]["text"] == ANSWER
    sse = lava.forward(f"{GEMINI}:streamGenerateContent?alt=sse", document)
    assert sse.headers["content-type"].startswith("text/event-stream")
    array = lava.forward(f"{GEMINI}:streamGenerateContent", document)
    assert array.headers["content-type"].startswith("application/json")
    for found in (events(sse.text), array.json()):
        candidates = [one["candidates"][0] for one in found]
        assert "".join(one["content"]["parts"][0]["text"] for one in candidates) == ANSWER
        assert [one.get("finishReason") for one in candidates] == [None] * (len(found) - 1) + ["STOP"]
        assert found[-1]["usageMetadata"] == whole["usageMetadata"]


def test_google_embeds_counts_and_lists(lava: Lava) -> None:
    """The remaining methods answer in Google's shapes, on each version of the address."""
    content = {"parts": [{"text": "x"}]}
    one = lava.forward(f"{GEMINI}:embedContent", {"content": content, "outputDimensionality": 4}).json()
    assert len(one["embedding"]["values"]) == 4
    many = lava.forward(f"{GEMINI}:batchEmbedContents", {"requests": [{"content": content}] * 3}).json()
    assert many["embeddings"] == [{"values": many["embeddings"][0]["values"]}] * 3
    assert lava.forward(f"{GEMINI}:countTokens", {"contents": [content]}).json() == {"totalTokens": 1}
    host = "https://generativelanguage.googleapis.com"
    for version in ("v1", "v1beta", "v1alpha"):
        assert lava.forward(f"{host}/{version}/models").json()["models"]
        assert lava.forward(f"{host}/{version}/models/gemini-2.5-pro").json()["name"] == "models/gemini-2.5-pro"
    answer = lava.forward(f"{host}/v1beta/models/none:nothing", {})
    assert answer.json()["error"]["status"] == "NOT_FOUND"


ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["user", "system", "url", "base64"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "parts",
                    "text",
                    "type",
                    "input",
                    "model",
                    "name",
                    "function",
                    "format",
                    "schema",
                    "parameters",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
NODES = {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "hi"),
        ({"type": "STRING", "enum": ["b", "a"]}, "b"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "string", "maxLength": 1}, "h"),
        ({"type": ["null", "integer"], "minimum": 3}, 3),
        ({"exclusiveMinimum": 3, "type": "number"}, 4),
        ({"minimum": 10**400, "type": "integer"}, 10**400),
        ({"minimum": float("inf"), "type": "integer"}, 1),
        ({"type": "BOOLEAN", "nullable": True}, True),
        ({"const": {"a": 1}}, {"a": 1}),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 1),
        ({"type": "number", "maximum": 0.5}, 0.5),
        ({"type": "array", "items": {"type": "string"}}, []),
        ({"type": "ARRAY", "items": {"type": "STRING"}, "minItems": "2"}, ["hi", "hi"]),
        ({"type": "ARRAY", "items": {"type": "INTEGER", "minimum": 1.5}, "min_items": 1}, [2]),
        ({"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, {"a": 1}),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "integer", "minimum": 2}}}, 2),
        ({"$ref": "#/$defs/nowhere"}, {}),
        ({}, {}),
        (None, {}),
        ({"allOf": [{"$ref": "#"}]}, {}),
    ],
)
def test_a_value_fits_its_schema(schema: Any, value: Any) -> None:
    """The smallest there is; a schema that says nothing takes anything."""
    assert smallest_value(schema, "hi") == value


@pytest.mark.parametrize(
    "schema",
    [
        {**NODES, "$ref": "#/$defs/node"},
        {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}] * 9}}, "$ref": "#/$defs/a"},
        {"$ref": "#", "type": "array", "minItems": 1000000, "items": {"$ref": "#"}},
        {"type": "object", "required": list("abcdefghij"), "properties": {key: {"$ref": "#"} for key in "abcdefghij"}},
    ],
)
def test_a_schema_without_an_end_gets_a_value_all_the_same(schema: Any) -> None:
    """A schema may refer to itself: the value stays small."""
    assert len(json.dumps(smallest_value(schema, "hi"))) < 100_000


NEEDED = "model messages input prompt contents max_tokens input_file_id endpoint completion_window requests content"
OPTIONAL = (
    "stream stream_options system n dimensions stop stop_sequences metadata purpose encoding_format tools text "
    "instructions response_format max_completion_tokens temperature generateContentRequest outputDimensionality "
    "tool_choice output_config toolConfig generationConfig partial_images stream_format ttl expireTime file store"
)


@given(
    # Bodies that pass the first checks go deepest, so most have every member that some endpoint asks for.
    document=st.fixed_dictionaries(
        dict.fromkeys(NEEDED.split(), ANY_JSON), optional=dict.fromkeys(OPTIONAL.split(), ANY_JSON)
    )
    | ANY_JSON,
    at=st.integers(0, 99),
)
@examples(200, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
def test_no_body_makes_the_emulator_fail(lava: Lava, document: Any, at: int) -> None:
    """Whatever JSON comes, to whatever endpoint: an answer of the provider's or Lava's, never a fault of our own."""
    addresses = [
        f"forward?u={OPENAI}/chat/completions",
        f"forward?u={OPENAI}/completions",
        f"forward?u={OPENAI}/responses",
        f"forward?u={OPENAI}/embeddings",
        f"forward?u={OPENAI}/images/generations",
        f"forward?u={OPENAI}/audio/speech",
        f"forward?u={OPENAI}/audio/transcriptions",
        f"forward?u={OPENAI}/moderations",
        f"forward?u={OPENAI}/files",
        f"forward?u={OPENAI}/batches",
        f"forward?u={ANTHROPIC}/messages",
        f"forward?u={ANTHROPIC}/messages/count_tokens",
        f"forward?u={GEMINI}:generateContent",
        f"forward?u={GEMINI}:streamGenerateContent",
        f"forward?u={GEMINI}:embedContent",
        f"forward?u={GEMINI}:batchEmbedContents",
        f"forward?u={GEMINI}:countTokens",
        f"forward?u={ANTHROPIC}/messages/batches",
        f"forward?u={GOOGLE}/v1beta/cachedContents",
        f"forward?u={GOOGLE}/upload/v1beta/files",
        f"rewrite/openai/{ANTHROPIC}/messages",
        f"rewrite/anthropic/{OPENAI}/chat/completions",
        "chat/completions",
        "messages",
    ]
    headers = {"authorization": f"Bearer {lava.token()}", "anthropic-version": "2023-06-01"}
    for address in (addresses[at % len(addresses)], addresses[(at + 7) % len(addresses)]):
        answer = lava.http.post(address, json=document, headers=headers)
        assert answer.status_code < 500, (address, document, answer.text)


@given(st.text())
def test_pieces_join_to_the_text(text: str) -> None:
    """Cutting a text for a stream loses nothing and is bounded."""
    found = pieces(text)
    assert "".join(found) == text
    assert 1 <= len(found) <= 64


# Rewrite ---


@pytest.mark.parametrize("spelling", ["https://{}", "{}", "https:/{}", "https%3A%2F%2F{}"])
def test_rewrite_turns_chat_into_messages(lava: Lava, spelling: str) -> None:
    """An OpenAI client gets OpenAI's shapes from Anthropic's endpoint, whole and streamed, in every spelling."""
    target = spelling.format("api.anthropic.com/v1/messages")
    headers = {"authorization": f"Bearer {lava.token()}"}
    document: dict[str, Any] = {
        "model": "claude-opus-4-6",
        "messages": [{"role": "system", "content": "be brief"}, *QUESTION],
    }
    whole = lava.http.post(f"rewrite/openai/{target}", json=document, headers=headers).json()
    assert lava.last.url == f"{ANTHROPIC}/messages"
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"]["content"] == ANSWER
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["prompt_tokens"] > 5
    document |= {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, done = events(lava.http.post(f"rewrite/openai/{target}", json=document, headers=headers).text)
    assert done == "[DONE]"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == ANSWER
    assert chunks[-1]["usage"] == whole["usage"]


def test_rewrite_turns_messages_into_chat(lava: Lava) -> None:
    """An Anthropic client gets Anthropic's shapes from an OpenAI-like provider, whole and streamed."""
    address = "rewrite/anthropic/https://api.groq.com/openai/v1/chat/completions"
    headers = {"x-api-key": lava.token()}
    document = {"model": "llama", "max_tokens": 9, "system": "be brief", "messages": QUESTION}
    whole = lava.http.post(address, json=document, headers=headers).json()
    assert (whole["type"], whole["stop_reason"]) == ("message", "end_turn")
    assert whole["content"] == [{"type": "text", "text": ANSWER}]
    found = events(lava.http.post(address, json={**document, "stream": True}, headers=headers).text)
    assert [event["type"] for event in found][:2] == ["message_start", "content_block_start"]
    assert [event["type"] for event in found][-2:] == ["message_delta", "message_stop"]
    assert "".join(e["delta"]["text"] for e in found if e["type"] == "content_block_delta") == ANSWER
    assert found[-2]["usage"] == whole["usage"]


def test_rewrite_removes_what_a_client_appends(lava: Lava) -> None:
    """The documented suffix is stripped, and a target that ends so by itself is left alone."""
    headers = {"authorization": f"Bearer {lava.token()}"}
    document = {"model": "m", "max_tokens": 9, "messages": QUESTION}
    for address, kind in (
        ("rewrite/openai/api.anthropic.com/v1/messages/v1/chat/completions", "chat.completion"),
        ("rewrite/openai/api.openai.com/v1/chat/completions", "chat.completion"),
        ("rewrite/anthropic/api.openai.com/v1/chat/completions/v1/messages", "message"),
        ("rewrite/anthropic/api.anthropic.com/v1/messages", "message"),
    ):
        answer = lava.http.post(address, json=document, headers=headers).json()
        assert kind in (answer.get("object"), answer.get("type"))


def test_rewrite_errors_come_in_the_clients_shape(lava: Lava) -> None:
    """A provider's complaint and a fault are translated; what cannot be rewritten is Lava's 400."""
    headers = {"authorization": f"Bearer {lava.token()}"}
    address = f"rewrite/openai/{ANTHROPIC}/messages"
    missing = lava.http.post(address, json={"model": "m", "messages": []}, headers=headers)
    assert (missing.status_code, set(missing.json()["error"])) == (400, {"message", "type", "param", "code"})
    document = {"model": "fault-status-429", "messages": QUESTION}
    assert set(lava.http.post(address, json=document, headers=headers).json()["error"]) >= {"type", "param"}
    for bad in ("rewrite/bedrock/api.openai.com/v1/chat/completions", f"rewrite/openai/{OPENAI}/embeddings"):
        assert lava.http.post(bad, json={}, headers=headers).status_code == 400


# Faults ---


FAULTS_THAT_ANSWER = {
    "status-418": (418, "provider"),
    "status-529": (529, "provider"),
    "provider-401": (401, "provider"),
    "provider-402": (402, "provider"),
    "lava-401": (401, "lava"),
    "lava-402": (402, "lava"),
    "lava-403": (403, "lava"),
    "lava-404": (404, "lava"),
    "lava-429": (429, "lava"),
    "lava-500": (500, "lava"),
    "lava-unsupported": (400, "lava"),
    "spend-limit": (402, "lava"),
    "spend-limit-403": (403, "lava"),
}


@pytest.mark.parametrize("fault", FAULTS_THAT_ANSWER)
@pytest.mark.parametrize("how", ["header", "model", "provider/model", "form", "google path", "anthropic"])
def test_a_fault_answers_instead_of_the_provider(lava: Lava, fault: str, how: str) -> None:
    """Each is chosen by header or by a model's name in every place a name stands, and nothing is charged."""
    status, whose = FAULTS_THAT_ANSWER[fault]
    name = f"fault-{fault}"
    match how:
        case "header":
            answer = lava.chat(fault=fault)
        case "model":
            answer = lava.chat(model=name)
        case "provider/model":
            answer = lava.chat(model=f"groq/{name}", stream=True)
        case "form":
            url = f"{OPENAI}/audio/transcriptions"
            answer = lava.forward(url, files={"file": ("a", b"x")}, data={"model": name})
        case "google path":
            url = "https://generativelanguage.googleapis.com/v1beta/models/"
            answer = lava.forward(f"{url}{name}:streamGenerateContent?alt=sse", {"contents": [{"parts": []}]})
        case _:
            document = {"model": name, "max_tokens": 5, "messages": QUESTION, "stream": True}
            answer = lava.forward(f"{ANTHROPIC}/messages", document)
    assert answer.status_code == status
    assert lava.last.fault == fault
    assert lava.last.charged == 0
    assert answer.headers["x-lava-request-id"] == lava.last.request_id
    error = answer.json()["error"]
    if whose == "lava":
        lava_code(answer)
    elif how == "google path":
        assert isinstance(error["status"], str)
    elif how == "anthropic":
        assert answer.json()["type"] == "error"
    else:
        assert {"type", "param"} <= set(error)


def test_faults_of_the_edge_carry_no_request_id(lava: Lava) -> None:
    """HTML, emptiness and a redirect come back as they would from something in front of Lava."""
    page = lava.chat(fault="html-502")
    assert (page.status_code, page.headers["content-type"]) == (502, "text/html")
    assert "x-lava-request-id" not in page.headers
    empty = lava.chat(fault="empty-500")
    assert (empty.status_code, empty.content) == (500, b"")
    assert "content-type" not in empty.headers
    moved = lava.chat(fault="redirect")
    assert (moved.status_code, moved.next_request is not None) == (302, True)
    assert moved.headers["location"].startswith("https://elsewhere.example.com/")


def test_echo_token_repeats_the_secrets(lava: Lava) -> None:
    """The careless answer holds the whole authorization and the secret key, in its body and its headers."""
    token = lava.customer()
    answer = lava.chat(token=token, fault="echo-token")
    assert answer.status_code == 400
    for text in (answer.text, str(answer.headers)):
        assert token in text
        assert lava.world.secret_key in text


def test_unknown_faults_list_the_table(lava: Lava) -> None:
    """A misspelt fault says so instead of passing as no fault."""
    for name in ("cut-aftr-3", "cut-after-x", "status-99", "status-999", "slow-", "status-NNN", "9" * 5000):
        answer = lava.chat(fault=name)
        assert lava_code(answer) == "emulator_unknown_fault"
        assert all(row in answer.json()["error"]["message"] for row in FAULTS)


def test_the_table_of_faults_is_whole() -> None:
    """Every row does exactly one thing, says what, and is found under its own name with a number in it."""
    for name, row in FAULTS.items():
        assert row.what
        assert (row.reply is None) is not (row.plan is None)
        example = name.removesuffix("NNN").removesuffix("N").removesuffix("-S")
        example += "404" if name.endswith("NNN") else "3" if name.endswith("N") else ""
        found = find(example + "-1.5" if name.endswith("-S") else example)
        assert found is not None
        assert found[0] is row


def test_a_wrong_token_is_401_whatever_the_fault(lava: Lava) -> None:
    """Faults never hide a wrong credential."""
    assert lava_code(lava.chat(token="aks_live_" + "0" * 20, fault="html-502")) == "invalid_secret_key"


ENDS = {
    "openai": (f"{OPENAI}/chat/completions", stream_request(), b"[DONE]"),
    "responses": (f"{OPENAI}/responses", {"model": "m", "input": "a b c", "stream": True}, b"response.completed"),
    "anthropic": (f"{ANTHROPIC}/messages", stream_request(max_tokens=9), b"message_stop"),
    "google": (
        f"{GEMINI}:streamGenerateContent?alt=sse",
        {"contents": [{"parts": [{"text": "a b c"}]}]},
        b"finishReason",
    ),
    "google array": (
        f"{GEMINI}:streamGenerateContent",
        {"contents": [{"parts": [{"text": "a b c"}]}]},
        b"finishReason",
    ),
}

LAST_CHUNK = b"0\r\n\r\n"


def unchunked(raw: bytes) -> list[bytes]:
    """The data of every chunk in a chunked answer, the last and empty one left out."""
    body = raw.partition(b"\r\n\r\n")[2]
    chunks = []
    while body and body != LAST_CHUNK:
        size, _, rest = body.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return chunks


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_cut_after_breaks_between_two_events(lava: Lava, which: str, count: int) -> None:
    """Exactly that many whole events arrive, then the connection ends without the last chunk."""
    url, document, end = ENDS[which]
    with RawClient(lava, url, document, {"x-emulator-fault": f"cut-after-{count}"}) as raw:
        seen = raw.rest()
    assert seen.startswith(b"HTTP/1.1 200")
    assert not seen.endswith(LAST_CHUNK)
    chunks = unchunked(seen)
    assert len(chunks) == count
    if which != "google array":
        assert all(chunk.endswith((b"\n\n", b"\r\n\r\n")) for chunk in chunks)
    assert end not in seen
    assert lava.world.until(lambda: lava.last.cut)
    assert (lava.last.finished, lava.last.cancelled) == (False, False)


@pytest.mark.parametrize("which", ENDS)
def test_cut_inside_breaks_in_the_middle_of_an_event(lava: Lava, which: str) -> None:
    """Two whole events and part of a third arrive, then the connection ends without the last chunk."""
    url, document, _ = ENDS[which]
    with RawClient(lava, url, document, {"x-emulator-fault": "cut-inside-2"}) as raw:
        seen = raw.rest()
    *_whole, half = unchunked(seen)
    assert len(_whole) == 2
    assert half
    assert not half.endswith(b"\n")
    assert not seen.endswith(LAST_CHUNK)


@pytest.mark.parametrize("which", ENDS)
def test_no_end_closes_properly_without_the_end_marker(lava: Lava, which: str) -> None:
    """The framing is whole, the marker of the dialect is missing, and everything before it is there."""
    url, document, end = ENDS[which]
    answer = lava.forward(url, document)
    assert end in answer.content
    cut = lava.forward(url, document, headers={"x-emulator-fault": "no-end"})
    assert end not in cut.content
    assert cut.content
    assert lava.last.finished
    if which == "google array":
        assert len(cut.json()) == len(answer.json()) - 1


@pytest.mark.parametrize("which", ENDS)
def test_inband_errors_are_the_dialects_own(lava: Lava, which: str) -> None:
    """Two events, then the form of error that the official SDK of the dialect raises on, then a proper end."""
    url, document, end = ENDS[which]
    answer = lava.forward(url, document, headers={"x-emulator-fault": "inband-error"})
    assert answer.status_code == 200
    assert end not in answer.content
    found = answer.json() if which == "google array" else events(answer.text)
    assert len(found) == 3
    if which in ("anthropic", "responses"):
        assert found[-1]["type"] == "error"
        assert "\nevent: error\n" in answer.text
    assert found[-1]["error"]["message"]


@pytest.mark.parametrize("fault", ["cut-after-0", "cut-after-1", "cut-inside-0"])
def test_a_plain_answer_is_cut_short_of_its_length(lava: Lava, fault: str) -> None:
    """The declared length is right and the body is not: nothing of it, or half."""
    document = {"model": "m", "messages": QUESTION}
    with RawClient(lava, f"{OPENAI}/chat/completions", document, {"x-emulator-fault": fault}) as raw:
        seen = raw.rest()
    head, _, body = seen.partition(b"\r\n\r\n")
    declared = re.search(rb"content-length: (\d+)", head)
    assert declared
    assert len(body) == (0 if fault == "cut-after-0" else int(declared[1]) // 2)


def test_no_answer_closes_before_the_first_byte(lava: Lava) -> None:
    """The request was taken and the connection ends without a status line."""
    document = {"model": "fault-no-answer", "messages": QUESTION}
    with RawClient(lava, f"{OPENAI}/chat/completions", document) as raw:
        assert raw.rest() == b""
    assert lava.last.body
    assert lava.world.until(lambda: lava.last.cut)


def test_stall_shows_that_events_leave_one_by_one(lava: Lava) -> None:
    """The first events are readable while the stream goes on, and ``cancelled`` turns true when the client leaves."""
    document = stream_request(model="fault-stall-after-3")
    with RawClient(lava, f"{OPENAI}/chat/completions", document) as raw:
        raw.until(b'" said:"')
        assert len(unchunked(raw.seen)) == 3
        assert not lava.last.over
        raw.leave()
        assert lava.world.until(lambda: lava.last.cancelled)
    assert not lava.last.finished


def test_events_of_a_paced_stream_arrive_before_the_stream_ends(lava: Lava) -> None:
    """With a pace, each event is readable while the record still says that the answer is not complete."""
    lava.world.behaviour.pace = 0.05
    with RawClient(lava, f"{OPENAI}/chat/completions", stream_request()) as raw:
        for word in (b'"You"', b'" said:"', b'" one"'):
            raw.until(word)
            assert not lava.last.finished
        raw.until(LAST_CHUNK)
        assert lava.world.until(lambda: lava.last.finished)


@pytest.mark.parametrize("fault", ["slow-60", "stall-after-0"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_early_is_noticed(lava: Lava, fault: str, stream: bool) -> None:
    """Before the first byte of the answer, or after its head, streaming or not: ``cancelled`` turns true."""
    document = stream_request(stream=stream)
    with RawClient(lava, f"{OPENAI}/chat/completions", document, {"x-emulator-fault": fault}) as raw:
        assert lava.world.until(lambda: lava.world.received and lava.last.body)
        if fault == "stall-after-0":
            raw.until(b"\r\n\r\n")
        raw.leave()
        assert lava.world.until(lambda: lava.last.cancelled)


def test_a_client_that_leaves_while_uploading_is_noticed(lava: Lava) -> None:
    """A request whose body never becomes whole is recorded as cancelled."""
    with socket.create_connection(("127.0.0.1", lava.port), timeout=10.0) as half:
        half.sendall(b"POST /v1/forward?u=x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        assert lava.world.until(lambda: lava.world.received)
    assert lava.world.until(lambda: lava.last.cancelled)


def test_a_client_that_stops_reading_can_still_leave(lava: Lava) -> None:
    """An answer stuck in a full socket buffer ends when the client goes."""
    document = {"model": "m", "messages": [{"role": "user", "content": "x " * 3_000_000}]}
    with RawClient(lava, f"{OPENAI}/chat/completions", document) as raw:
        raw.until(b"HTTP/1.1 200")
    assert lava.world.until(lambda: lava.last.over)
    assert lava.chat().status_code == 200


def test_drip_sends_each_byte_in_a_chunk_of_its_own(lava: Lava) -> None:
    """The stream is the same, in as many chunks as it has bytes."""
    headers = {"x-emulator-fault": "drip", "Connection": "close"}
    with RawClient(lava, f"{OPENAI}/chat/completions", stream_request(), headers) as raw:
        seen = raw.rest()
    chunks = unchunked(seen)
    assert {len(chunk) for chunk in chunks} == {1}
    assert b"".join(chunks).endswith(b"data: [DONE]\n\n")


def test_faults_can_be_combined_in_the_header(lava: Lava) -> None:
    """A cookie, a delay and a missing end together; a number of zero counts as said."""
    answer = lava.chat(stream=True, fault="set-cookie, slow-0.01, no-end")
    assert answer.headers["set-cookie"].startswith("session=")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "[DONE]" not in answer.text
    assert lava.last.fault == "set-cookie, slow-0.01, no-end"
    with pytest.raises(httpx2.RemoteProtocolError):
        lava.chat(stream=True, fault="set-cookie, cut-after-0")


def test_faults_reach_the_model_list_too(lava: Lava) -> None:
    """Also where no credential is needed, the header chooses a fault."""
    answer = lava.http.get("models", headers={"x-emulator-fault": "lava-500"})
    assert (answer.status_code, lava_code(answer)) == (500, "internal_error")


@pytest.mark.parametrize("status", [200, 204, 304, 404, 599])
def test_any_status_can_be_had(lava: Lava, status: int) -> None:
    """``status-NNN`` gives that status with a framing that fits it; the connection stays usable."""
    assert lava.chat(fault=f"status-{status}").status_code == status
    assert lava.chat().status_code == 200


# Running ---


def test_closing_drops_open_streams_at_once_and_silently(capfd: pytest.CaptureFixture[str]) -> None:
    """``close`` does not wait for a stalled stream, may be called twice, frees the port, and nothing was printed."""
    emulator = Emulator(World.demo())
    lava = Lava(emulator)
    document = stream_request(model="fault-stall-after-1")
    with lava.http, RawClient(lava, f"{OPENAI}/chat/completions", document) as raw:
        raw.until(b"data: ")
        with RawClient(lava, f"{OPENAI}/chat/completions", stream_request(model="fault-cut-after-1")) as cut:
            cut.rest()
        with socket.create_connection(("127.0.0.1", lava.port), timeout=10.0) as garbage:
            garbage.sendall(b"\x00nonsense\r\n\r\n")
            assert garbage.recv(100).startswith(b"HTTP/1.1 400")
        emulator.close()
        emulator.close()
        assert b"HTTP/1.1 200" in raw.rest()
        assert not raw.seen.endswith(LAST_CHUNK)
    assert not any(thread.name == "lava-emulator" for thread in threading.enumerate())
    with Emulator(World.demo(), port=lava.port) as again:
        assert again.port == lava.port
        with pytest.raises(OSError, match="in use"):
            Emulator(World.demo(), port=lava.port)
    assert capfd.readouterr() == ("", "")


def test_two_worlds_know_nothing_of_each_other() -> None:
    """Keys are new for each world, of the documented forms, and one emulator refuses the other's."""
    one, other = World.demo(), World.demo()
    assert one.secret_key.startswith("aks_live_")
    assert one.test_key.startswith("aks_test_")
    assert all(key.startswith("lava_sk_") for key in one.keys.spend_keys.values())
    assert not set(one.key_values()) & set(other.key_values())
    with Emulator(one) as first, Emulator(other) as second:
        lava = Lava(first)
        with lava.http:
            bearer = {"authorization": f"Bearer {one.secret_key}"}
            assert lava.http.get(first.base_url + "wallet", headers=bearer).status_code == 200
            assert lava.http.get(second.base_url + "wallet", headers=bearer).status_code == 401


def test_the_application_runs_under_another_server() -> None:
    """``create_emulator`` gives an ASGI application that needs nothing of this package's server."""
    world = World.demo()
    application = create_emulator(world)

    async def ask() -> None:
        transport = httpx2.ASGITransport(app=application)
        async with httpx2.AsyncClient(transport=transport, base_url="http://lava") as client:
            answer = await client.get("/v1/models?x=%2F")
            assert answer.status_code == 200
            headers = {"authorization": f"Bearer {world.secret_key}"}
            document = {"model": "m", "messages": QUESTION}
            answer = await client.post("/v1/chat/completions", json=document, headers=headers)
            assert answer.json()["choices"][0]["message"]["content"] == ANSWER

    asyncio.run(ask())
    assert world.received[0].target == "/v1/models?x=%2F"


@pytest.mark.skipif(os.name == "nt", reason="no POSIX signals there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_forever_ends_on_a_signal(number: signal.Signals) -> None:
    """As a program it says where it listens, answers, and ends cleanly on SIGINT and SIGTERM."""
    script = (
        "import asyncio; from proxy.emulator import World, serve_forever;"
        "asyncio.run(serve_forever(World.demo(), port=0, ready=lambda url: print(url, flush=True)))"
    )
    root = os.path.dirname(os.path.dirname(proxy.__file__))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            base = process.stdout.readline().strip()
            assert httpx2.get(f"{base}models", trust_env=False).status_code == 200
            process.send_signal(number)
            assert process.wait(15) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_serve_forever_says_when_the_port_is_taken(emulator: Emulator) -> None:
    """A taken port is an ``OSError`` for the command line to explain, not a log line and an exit."""
    with pytest.raises(OSError, match="in use"):
        asyncio.run(serve_forever(World.demo(), port=emulator.port))
