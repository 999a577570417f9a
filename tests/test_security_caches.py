"""Requests that are almost alike: what is remembered of one must never decide another.

A fast path may keep what it worked out for bytes it has seen: a head's verdict, a key's project, a plan, an answer's headers.
Each check here sends one request until it is surely remembered, then neighbours that differ from it in as little as can
be: one byte, a length, a key, an order, a duplicate, the socket they came by, the configuration in use. Each must be judged,
and forwarded, as if nothing had come before.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import signal
import socket
from typing import TYPE_CHECKING

from rawclient import PATIENCE, RawClient, Response
from security_stand import (
    KEY_A,
    KEY_B,
    LAVA_KEY,
    LOCAL_KEY,
    sound,
    target_url,
    until,
)
from upstream import Upstream, answer

from proxy.lava.tokens import mint_token

if TYPE_CHECKING:
    from daemons import Daemon
    from security_stand import Stand
    from upstream import Peer, Received


PRIMED = 3
"""How often a request is sent before its neighbours: memories that begin with the second time are filled, too."""


def lines(port: int, *fields: str | bytes, line: str = "POST /openai/v1/files HTTP/1.1") -> bytes:
    """A head whose every field is given, ``Host`` as well where it does not matter."""
    parts = [line, f"Host: 127.0.0.1:{port}", *fields, "", ""]
    return b"\r\n".join(each if isinstance(each, bytes) else each.encode("latin-1") for each in parts)


def say(client: RawClient, raw: bytes, *, head_only: bool = False) -> Response:
    client.send(raw)
    return client.response(head_only=head_only)


def prime(client: RawClient, raw: bytes) -> None:
    for _ in range(PRIMED):
        assert say(client, raw).status == 200


def closes_after(client: RawClient, response: Response) -> bool:
    return "close" in (response.header("connection") or "") and client.closed()


# --- heads -----------------------------------------------------------------------------------------------------------


def test_lengths_are_read_each_time(stand: Stand) -> None:
    """Heads that differ in Content-Length alone: each body ends where its own head says, on one connection and pipelined."""
    port = stand.daemon().port
    seen = stand.since()
    sizes = [5, 5, 5, 6, 5, 4, 0, 5, 50, 5, 15, 5, 7, 70, 7]
    bodies = [bytes([97 + number]) * size for number, size in enumerate(sizes)]
    whole = [lines(port, f"Content-Length: {len(body)}") + body for body in bodies]
    with stand.client() as client:
        for raw in whole:
            assert say(client, raw).status == 200
        client.send(b"".join(whole))
        for _ in whole:
            assert client.response().status == 200
    assert [each.body for each in seen()] == bodies * 2
    for each in seen():
        sound(each)


def test_framing_is_proved_each_time(stand: Stand) -> None:
    """A well-known head, then the same with one fault of framing: refused and closed, and nothing of it goes upstream."""
    port = stand.daemon().port
    good = lines(port, "Content-Length: 5", "X-A: b") + b"hello"
    assert good.count(b"Content-Length: 5\r\n") == 1
    spoilt = [
        good.replace(b"X-A: b", b"Content-Length: 5"),
        good.replace(b"X-A: b", b"Content-Length: 6"),
        good.replace(b"X-A: b", b"Transfer-Encoding: chunked"),
        good.replace(b"X-A: b", b"Host: 127.0.0.1:%d" % port),
        good.replace(b"X-A: b", b"X-A : b"),
        good.replace(b"X-A: b", b" X-A: b"),
        good.replace(b"X-A: b", b"X-A: \0b"),
        good.replace(b"X-A: b", b"X-A: b\n"),
        good.replace(b"X-A: b\r\n", b"X-A: b\n"),
        good.replace(b"X-A: b", b"X-A:\rb"),
        good.replace(b"Length: 5", b"Length: +5"),
        good.replace(b"Length: 5", b"Length: 5,5"),
        good.replace(b"Length: 5", b"Length: 5\x0b"),
        good.replace(b"HTTP/1.1", b"HTTP/1.2"),
        good.replace(b" HTTP/1.1", b"  HTTP/1.1"),
        good.replace(b"Host: 127", b"Hosts: 127"),
    ]
    for raw in spoilt:
        with stand.client() as client:
            prime(client, good)
            prime(client, good + b"")
            with stand.untouched():
                refused = say(client, raw)
                assert refused.code in ("bad_request", "http_version_unsupported"), raw
                assert closes_after(client, refused), raw
    # Framing that is sound, only another one.
    chunked = lines(port, "Transfer-Encoding: chunked", "X-A: b") + b"5\r\nhello\r\n0\r\n\r\n"
    empty = lines(port, "X-A: b")
    with stand.client() as client:
        for raw, body in [
            (good, b"hello"),
            (chunked, b"hello"),
            (good, b"hello"),
            (empty, b""),
            (chunked, b"hello"),
        ] * 3:
            assert say(client, raw).status == 200
            sound(stand.last)
            assert stand.last.body == body


def test_what_ends_the_connection_is_read_each_time(stand: Stand) -> None:
    """Version, ``Connection``, ``Expect`` and the method of a known head are looked at anew."""
    port = stand.daemon().port
    good = lines(port, "Connection: alive", "Content-Length: 2") + b"{}"

    with stand.client() as client:
        prime(client, good)
        response = say(client, good.replace(b"Connection: alive", b"Connection: close"))
        assert response.status == 200
        assert closes_after(client, response)
    with stand.client() as client:
        prime(client, good)
        response = say(client, good.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert response.status == 200
        assert response.header("transfer-encoding") is None
        assert client.closed()
    with stand.client() as client:
        prime(client, good)
        expecting = good.replace(b"Connection: alive", b"Expect: 100-continue")
        client.send(expecting[:-2])
        assert client.response().status == 100
        client.send(b"{}")
        assert client.response().status == 200
        prime(client, good)
        response = say(client, good.replace(b"Connection: alive", b"Expect: 200-continue"))
        assert response.code == "expectation_failed"
        assert closes_after(client, response)
    with stand.client() as client:
        prime(client, good)
        response = say(client, good.replace(b"Connection: alive", b"Upgrade: websocket"))
        assert response.code == "upgrade_required"
        assert closes_after(client, response)
    with stand.client() as client:
        for method in (b"POST", b"PUT", b"DELETE", b"PATCH", b"POST", b"GET", b"POST"):
            assert say(client, good.replace(b"POST", method)).status == 200
            assert stand.last.method == method
            assert stand.last.body == b"{}"
        got = lines(port, "X-A: b", line="GET /openai/v1/files HTTP/1.1")
        for _ in range(PRIMED):
            assert say(client, got).body
            headed = say(client, got.replace(b"GET", b"HEAD"), head_only=True)
            assert headed.status == 200
            assert stand.last.method == b"HEAD"
        assert say(client, got).body


def test_any_one_byte_counts(stand: Stand) -> None:
    """Every byte of a known head, made another: a daemon that knows it and one that does not say and send the same."""
    host = b"gateway.internal:8080"  # the same for both
    good = b"\r\n".join(
        [
            b"POST /groq/v1/files?a=b HTTP/1.1",
            b"Host: " + host,
            b"X-A: b",
            b"Content-Type: text/x",
            b"X-Api-Key: k",
            b"Connection: x-b",
            b"Content-Length: 2",
            b"",
            b"{}",
        ]
    )
    behind = good.replace(b"POST /groq/v1/files", b"PUT /groq/v1/after")
    rng = random.Random(20_261_125)
    made: list[bytes] = []
    for at in range(len(good) - 2):
        others = [byte for byte in b"\0\t\n\r \x0b:;,/%?#=a1Z\x7f\x80\xff" if byte != good[at]]
        made += [good[:at] + bytes([byte]) + good[at + 1 :] for byte in rng.sample(others, 3)]

    def judged(running: Daemon, raw: bytes, *, first: bool) -> tuple[object, ...]:
        """Status and code of ``raw`` and what of it went upstream, after ``good`` on one connection or alone."""
        with stand.client(running) as client:
            if first:
                prime(client, good)
            seen = stand.since()
            client.push(raw + behind)  # so that a head that lost its end, or a body, does not wait
            response = client.response()
            return (
                response.status,
                response.code,
                [(each.target, each.others(), each.body) for each in seen() if b"after" not in each.target],
            )

    allowed = f'[server]\nallowed_hosts = ["{host.decode()}"]\n'
    knowing, alone = stand.start(allowed), stand.start(allowed)
    with stand.client(knowing) as client:
        prime(client, good)
        prime(client, behind)
    here = [judged(knowing, raw, first=number % 2 == 0) for number, raw in enumerate(made)]
    there = [judged(alone, raw, first=False) for raw in reversed(made)][::-1]
    for raw, one, two in zip(made, here, there, strict=True):
        assert one == two, raw
    statuses = [status for status, _, _ in here]
    assert {200, 400, 421} <= set(statuses)
    assert statuses.count(200) > 50


# --- keys, names, pages ----------------------------------------------------------------------------------------------


def test_keys_are_compared_each_time(stand: Stand) -> None:
    """Heads that differ in the key alone: each opens what it opens, in any header, on a kept connection."""
    port = stand.daemon("keyed").port

    def wrong(key: str, at: int) -> str:
        return key[:at] + ("x" if key[at] != "x" else "y") + key[at + 1 :]

    credential = {
        LOCAL_KEY: b"Bearer " + mint_token(LAVA_KEY, meter_slug="meter-a").encode(),
        KEY_A: b"Bearer " + mint_token(LAVA_KEY, meter_slug="meter-a").encode(),
        KEY_B: b"Bearer " + mint_token(LAVA_KEY, meter_slug="meter-b").encode(),
    }
    with stand.client("keyed") as client:
        for name, scheme in (
            ("Authorization", "Bearer "),
            ("X-Api-Key", ""),
            ("X-Lava-Proxy-Key", ""),
            ("Api-Key", ""),
        ):

            def raw(key: str, name: str = name, scheme: str = scheme) -> bytes:
                return lines(port, f"{name}: {scheme}{key}", "Content-Length: 2") + b"{}"

            for key in (KEY_A, KEY_B, LOCAL_KEY, KEY_B, KEY_A, KEY_A, KEY_B):
                assert say(client, raw(key)).status == 200
                sound(stand.last, credential[key])
                before = len(stand.upstream.requests)
                for other in (*(wrong(key, at) for at in range(0, len(key), 7)), key[:-1], key + "x", key.upper(), ""):
                    refused = say(client, raw(other))
                    assert refused.code == "local_key_invalid", (name, other)
                assert len(stand.upstream.requests) == before
                assert say(client, raw(key)).status == 200
                sound(stand.last, credential[key])


def test_order_and_duplicates_of_keys_count(stand: Stand) -> None:
    """The same credential lines once, twice, in another order, or with the deciding one last."""
    port = stand.daemon("keyed").port
    token_a = b"Bearer " + mint_token(LAVA_KEY, meter_slug="meter-a").encode()
    token_b = b"Bearer " + mint_token(LAVA_KEY, meter_slug="meter-b").encode()
    a, b, bad = f"Authorization: Bearer {KEY_A}", f"X-Api-Key: {KEY_B}", "Authorization: Bearer not-a-local-key-at-all"
    proxy_b = f"X-Lava-Proxy-Key: {KEY_B}"
    table: list[tuple[list[str], bytes | str]] = [
        ([a], token_a),
        ([a, b], token_a),
        ([b, a], token_a),
        ([b], token_b),
        ([bad, b], "local_key_invalid"),
        ([b, bad], "local_key_invalid"),
        ([a, a], "bad_request"),
        ([a, b, b], "bad_request"),
        ([b, b, a], "bad_request"),
        ([a, proxy_b], token_b),
        ([proxy_b, a], token_b),
        ([proxy_b, bad], token_b),
        ([proxy_b, proxy_b], "bad_request"),
        ([], "local_key_required"),
        ([f"X-Other: Bearer {KEY_A}"], "local_key_required"),
        ([a, "X-Lava-Proxy-Project: a"], token_a),
        ([a, "X-Lava-Proxy-Project: b"], "project_not_allowed"),
        ([a, "X-Lava-Proxy-Project: a", "X-Lava-Proxy-Project: a"], "bad_request"),
    ]
    rng = random.Random(7)
    with stand.client("keyed") as client:
        for _ in range(PRIMED):
            for fields, wanted in table:
                response = say(client, lines(port, *fields, "Content-Length: 2") + b"{}")
                if isinstance(wanted, str):
                    assert response.code == wanted, fields
                else:
                    assert response.status == 200, fields
                    sound(stand.last, wanted)
            rng.shuffle(table)


def test_names_and_pages_are_judged_each_time(stand: Stand) -> None:
    """Heads that differ in Host, Origin or Sec-Fetch-Site alone, again and again in any order."""
    port = stand.daemon("keyed").port
    key = f"Authorization: Bearer {LOCAL_KEY}"
    own = f"Host: 127.0.0.1:{port}"
    table: list[tuple[list[str], str | None]] = [
        ([own], None),
        ([f"Host: 127.0.0.2:{port}"], "host_not_allowed"),
        ([f"Host: 127.0.0.1:{port}."], "host_not_allowed"),
        ([f"Host: localhost:{port}"], None),
        ([f"Host: localhosu:{port}"], "host_not_allowed"),
        (["Host: gateway.internal:8080"], None),
        (["Host: gateway.internal:8081"], "host_not_allowed"),
        ([own, own], "bad_request"),
        ([own, "Origin: https://app.example"], None),
        ([own, "Origin: https://app.examplf"], "origin_not_allowed"),
        ([own, "Origin: http://app.example"], "origin_not_allowed"),
        ([own, f"Origin: http://127.0.0.1:{port}"], None),
        ([f"Host: localhost:{port}", f"Origin: http://127.0.0.1:{port}"], "origin_not_allowed"),
        ([own, "Sec-Fetch-Site: none"], None),
        ([own, "Sec-Fetch-Site: same-site"], "origin_not_allowed"),
        ([own, "Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"], "origin_not_allowed"),
        ([own, "Origin: https://app.example", "Sec-Fetch-Site: cross-site"], None),
        ([own, "Origin: https://app.example", "Origin: https://app.example"], "origin_not_allowed"),
    ]
    rng = random.Random(8)
    for _ in range(PRIMED):
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(stand.client("keyed"))
            for fields, wanted in table:
                raw = "\r\n".join(["POST /groq/v1/x HTTP/1.1", *fields, key, "Content-Length: 2", "", "{}"]).encode()
                response = say(client, raw)
                assert response.code == wanted, fields
                assert (response.status == 200) == (wanted is None), fields
                listed = wanted is None and "Origin: https://app.example" in fields
                assert (response.header("access-control-allow-origin") is not None) == listed, fields
                if response.header("connection") == "close":
                    client = stack.enter_context(stand.client("keyed"))
        rng.shuffle(table)


def test_the_same_bytes_on_another_socket(stand: Stand) -> None:
    """One head on TCP and on the unix socket: ``Host: localhost`` is a name of ours on the latter alone."""
    path = stand.folder / "alike.sock"
    running = stand.start(f'[server]\nunix_socket = "{path}"\n')
    raw = b"POST /groq/v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    full = raw.replace(b"localhost", b"localhost:%d" % running.port)
    for _ in range(PRIMED):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(path))
            for _ in range(2):
                sock.sendall(raw)
                said = b""
                while b"\r\n\r\n" not in said:
                    said += sock.recv(65_536)
                assert said.startswith(b"HTTP/1.1 200 "), said
        with stand.client(running) as client:
            assert say(client, full).status == 200
            assert say(client, raw).code == "host_not_allowed"


# --- what travels ----------------------------------------------------------------------------------------------------


def test_what_travels_is_made_each_time(stand: Stand) -> None:
    """Heads that differ in one travelling header, its order, its number or a nomination: each goes on as it came."""
    port = stand.daemon().port
    ours = {b"host", b"authorization", b"content-length"}
    table: list[tuple[list[str], list[tuple[bytes, bytes]]]] = [
        (["X-A: 1"], [(b"x-a", b"1")]),
        (["X-A: 2"], [(b"x-a", b"2")]),
        (["X-A: 1", "X-B: 1"], [(b"x-a", b"1"), (b"x-b", b"1")]),
        (["X-B: 1", "X-A: 1"], [(b"x-b", b"1"), (b"x-a", b"1")]),
        (["X-A: 1", "X-A: 1"], [(b"x-a", b"1"), (b"x-a", b"1")]),
        (["X-A: 1", "X-A: 2"], [(b"x-a", b"1"), (b"x-a", b"2")]),
        (["X-A: 1", "X-B: 1", "Connection: x-a"], [(b"x-b", b"1")]),
        (["X-A: 1", "X-B: 1", "Connection: x-b"], [(b"x-a", b"1")]),
        (["X-A: 1", "X-B: 1", "Connection: keep-alive"], [(b"x-a", b"1"), (b"x-b", b"1")]),
        (["X_A: 1", "X-B: 1"], [(b"x-b", b"1")]),
        (["X-Forwarded-A: 1", "Cookie: a=b", "X-Api-Key: k"], []),
        (['X-Lava-Metadata: {"a":"1"}'], [(b"x-lava-metadata", b'{"a":"1"}')]),
        (['X-Lava-Metadata: {"a":"2"}'], [(b"x-lava-metadata", b'{"a":"2"}')]),
        (['X-Lava-Metadata: {"a":"2"}', "Connection: x-lava-metadata"], []),
        (["X-A: \xe9"], [(b"x-a", b"\xe9")]),
        (["X-A: 1 "], [(b"x-a", b"1")]),
        (["X-A:"], [(b"x-a", b"")]),
    ]
    rng = random.Random(9)
    with stand.client() as client:
        for _ in range(PRIMED):
            for fields, wanted in table:
                assert say(client, lines(port, *fields, "Content-Length: 2") + b"{}").status == 200
                sound(stand.last)
                sent = [(name.lower(), value) for name, value in stand.last.others()]
                assert [pair for pair in sent if pair[0] not in ours] == wanted, fields
            rng.shuffle(table)


def test_addresses_and_models_are_routed_each_time(stand: Stand) -> None:
    """Addresses that differ in one byte, and bodies of one length that differ in the model, under one and the same head."""
    running = stand.start('[models]\nfast = "groq/llama-3.1"\n')
    port = running.port
    openai, groq, anthropic = (
        "https://api.openai.com/v1",
        "https://api.groq.com/openai/v1",
        "https://api.anthropic.com/v1",
    )
    deepseek = "https://api.deepseek.com"
    chat: list[tuple[bytes, str]] = [
        (b'{"model":"gpt-4o-min"}', f"{openai}/chat/completions"),
        (b'{"model":"fast"      }', f"{groq}/chat/completions"),
        (b'{"modem":"fast"      }', f"{openai}/chat/completions"),
        (b'{"model":"groq/gpt-4"}', f"{groq}/chat/completions"),
        (b'{"model":"deepseek-x"}', f"{deepseek}/"),
    ]
    assert len({len(body) for body, _ in chat}) == 1
    addresses = [
        ("/groq/v1/files", f"{groq}/files"),
        ("/groq/v1/filez", f"{groq}/filez"),
        ("/groq/v1/files?a=1", f"{groq}/files?a=1"),
        ("/groq/v1/files?a=2", f"{groq}/files?a=2"),
        ("/groq/v1/files?key=2", f"{groq}/files"),
        ("/groq/v1/files?kez=2", f"{groq}/files?kez=2"),
        ("/groq/v1/files%2f", f"{groq}/files%2f"),
        ("/groq/v1/files%2F", f"{groq}/files%2F"),
        ("/openai/v1/files", f"{openai}/files"),
        ("/anthropic/v1/files", f"{anthropic}/files"),
    ]
    rng = random.Random(10)
    with stand.client(running) as client:
        for _ in range(PRIMED):
            for body, wanted in chat:
                raw = lines(port, f"Content-Length: {len(body)}", line="POST /v1/chat/completions HTTP/1.1") + body
                assert say(client, raw).status == 200
                assert target_url(stand.last).startswith(wanted), body
                if b"fast" in body and b"model" in body:
                    assert json.loads(stand.last.body)["model"] == "llama-3.1"
            for target, wanted in addresses:
                raw = lines(port, "Content-Length: 2", line=f"POST {target} HTTP/1.1") + b"{}"
                assert say(client, raw).status == 200
                assert target_url(stand.last) == wanted
            for target in (
                "/groq/v1/../files",
                "/groq/v1/%2e%2E/files",
                "/groq/v1/files%0a",
                "/groq/v1/files%5c",
                "/groqq/v1/files",
            ):
                raw = lines(port, "Content-Length: 2", line=f"POST {target} HTTP/1.1") + b"{}"
                assert say(client, raw).code in ("bad_target", "provider_not_found")
            rng.shuffle(chat)
            rng.shuffle(addresses)


def test_a_coding_of_the_body_is_seen_each_time(stand: Stand) -> None:
    """The same bytes with and without Content-Encoding, and with another Content-Type: the model is found where it is."""
    running = stand.start('[models]\nfast = "groq/llama-3.1"\n')
    plain = b'{"model":"fast","messages":[]}'
    packed = gzip.compress(plain)
    groq, openai = "https://api.groq.com/", "https://api.openai.com/"
    table = [
        ({}, plain, groq, b'{"model":"llama-3.1","messages":[]}', None),
        ({"Content-Encoding": "gzip"}, packed, groq, b'{"model":"llama-3.1","messages":[]}', None),
        ({}, packed, openai, packed, None),
        ({"Content-Encoding": "gzip"}, plain, openai, plain, b"gzip"),
        ({"Content-Encoding": "identity"}, plain, groq, b'{"model":"llama-3.1","messages":[]}', b"identity"),
        ({"Content-Type": "audio/wav"}, plain, openai, plain, None),
    ]
    with stand.client(running) as client:
        for turn in range(PRIMED * 2):
            for fields, body, host, sent, coding in table if turn % 2 else table[::-1]:
                client.request("POST", "/v1/chat/completions", body, fields)
                assert client.response().status == 200
                assert target_url(stand.last).startswith(host), fields
                assert stand.last.body == sent
                assert stand.last.header(b"content-encoding") == coding


def test_answers_are_read_each_time(stand: Stand) -> None:
    """Answers whose heads differ in as little: each client gets its own, with nothing of another's."""
    script = [
        answer(200, b"one", [(b"x-lava-request-id", b"r1"), (b"content-type", b"text/a")]),
        answer(200, b"two", [(b"x-lava-request-id", b"r2"), (b"content-type", b"text/a")]),
        answer(200, b"four", [(b"x-lava-request-id", b"r2"), (b"content-type", b"text/a")]),
        answer(200, b"", [(b"x-lava-request-id", b"r2"), (b"content-type", b"text/a")]),
        answer(201, b"two", [(b"x-lava-request-id", b"r2"), (b"content-type", b"text/a")]),
        answer(
            200, b"two", [(b"x-lava-request-id", b"r2"), (b"content-type", b"text/a"), (b"content-type", b"text/b")]
        ),
        answer(200, b"two", [(b"x-lava-request-id", b"r2"), (b"set-cookie", b"a=b")]),
        answer(200, b"two", [(b"x-lava-request-id", b"r2"), (b"connection", b"x-a"), (b"x-a", b"b")]),
        answer(200, b"two", [(b"x-lava-request-id", b"r2"), (b"x-a", b"b")]),
        answer(200, b"3\r\nend\r\n0\r\n\r\n", [(b"transfer-encoding", b"chunked"), (b"x-a", b"b")], length=False),
        answer(200, b"3\r\nend\r\n0\r\n\r\n", [(b"x-a", b"b"), (b"content-length", b"13")], length=False),
        answer(204, b"", [(b"x-lava-request-id", b"r2"), (b"x-a", b"b")], length=False),
    ]
    heard: list[Response] = []
    turn = [0]

    def play(peer: Peer, received: Received) -> None:
        peer.body(received)
        peer.send(script[turn[0] % len(script)])

    with stand.playing(play), stand.client() as client:
        for turn[0] in range(len(script) * PRIMED):
            client.request("POST", "/groq/v1/x", b"{}")
            heard.append(client.response())
    for number, response in enumerate(heard):
        raw = script[number % len(script)]
        head, _, body = raw.partition(b"\r\n\r\n")
        fields = [line.partition(b": ")[::2] for line in head.split(b"\r\n")[1:]]
        assert response.status == int(head.split(b" ")[1])
        assert response.body == (b"end" if (b"transfer-encoding", b"chunked") in fields else body)
        gone = {b"set-cookie", b"connection", b"transfer-encoding"} | (
            {b"x-a"} if (b"connection", b"x-a") in fields else set()
        )
        wanted = [(name.decode(), value.decode()) for name, value in fields if name not in gone]
        wanted.append(("content-security-policy", "sandbox"))  # none has a type that no browser runs
        ours = ("x-lava-proxy-project", "x-lava-proxy-provider", "x-lava-proxy-request-id", "date", "transfer-encoding")
        assert [pair for pair in response.headers if pair[0] not in ours] == wanted, raw
        assert response.header("x-lava-proxy-error") is None
    assert len({response.header("x-lava-proxy-request-id") for response in heard}) == len(heard)


# --- across configurations -------------------------------------------------------------------------------------------


def test_a_reload_forgets(stand: Stand) -> None:
    """The same bytes before and after a reload, on one kept connection: only the configuration in use decides."""
    keys = {"old": "alike-old-key-" + "1234567890", "new": "alike-new-key-" + "1234567890"}

    def config(**changed: str) -> str:
        said = {
            "hosts": '["gateway.internal"]',
            "origins": '["https://app.example"]',
            "key": keys["old"],
            "size": "1000",
            "meter": "m1",
            "pair": "p1",
            "fast": "groq/llama-3.1",
            "secret": "env:KEY",
            **changed,
        }
        return (
            f'default_project = "site"\n[lava]\nsecret_key = "{said["secret"]}"\nbase_url = "{stand.upstream.url}"\n'
            f"[server]\nallowed_hosts = {said['hosts']}\nallowed_origins = {said['origins']}\n"
            f"max_body_bytes = {said['size']}\n"
            f'[projects.site]\nkeys = ["{said["key"]}"]\nmeter = "{said["meter"]}"\nmetadata = {{ team = "{said["pair"]}" }}\n'
            f'[models]\nfast = "{said["fast"]}"\n'
        )

    running = stand.start()
    client = stand.client(running)
    port = running.port

    def use(**changed: str) -> None:
        before = len(running.output())
        running.config.write_text(config(**changed))
        running.process.send_signal(signal.SIGHUP)
        until(lambda: "configuration reloaded" in running.output()[before:], what="for the reload")

    body = b'{"model":"fast"}'

    def ask(*, key: str = "old", host: str = "gateway.internal", origin: str = "https://app.example") -> Response:
        fields = [
            f"Host: {host}",
            f"Authorization: Bearer {keys[key]}",
            f"Content-Length: {len(body)}",
            f"Origin: {origin}",
        ]
        raw = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *fields, "", ""]).encode() + body
        return say(client, raw)

    def good(meter: str = "m1", pair: str = "p1", key: str = "old", host: str = "https://api.groq.com/") -> None:
        for _ in range(PRIMED):
            response = ask(key=key)
            assert response.status == 200, response.body
            sound(stand.last, b"Bearer " + mint_token(LAVA_KEY, meter_slug=meter).encode())
            assert (b"x-lava-metadata", b'{"team":"%b"}' % pair.encode()) in stand.last.others()
            assert target_url(stand.last).startswith(host)

    with client:
        use()
        good()
        use(meter="m2")
        good("m2")
        use(pair="p2")
        good(pair="p2")
        use(fast="openai/gpt-x")
        good(host="https://api.openai.com/")
        use(key=keys["new"])
        good(key="new")
        for _ in range(PRIMED):
            assert ask().code == "local_key_invalid"
        use()
        good()
        for _ in range(PRIMED):
            assert ask(key="new").code == "local_key_invalid"
        use(hosts="[]")
        assert ask().code == "host_not_allowed"
        assert say(client, lines(port, "Content-Length: 0")).code == "local_key_required"
        use()
        good()
        use(origins="[]")
        assert ask().code == "origin_not_allowed"
        use()
        good()
        use(size="10")
        refused = ask()
        assert refused.code == "body_too_large"
        assert closes_after(client, refused)
    client = stand.client(running)
    with client:
        use()
        good()
    running.secrets += keys.values()
    assert running.stop() == 0


def test_a_known_head_is_refused_while_draining(stand: Stand) -> None:
    """A kept connection whose head is known: once the daemon goes down, the same bytes are not served any more."""
    held: list[Peer] = []

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if b"hold" in received.target:
                held.append(peer)
                peer.gone()
                return
            peer.send(answer(200, b"{}"))

    with Upstream(script) as upstream:
        running = stand.start("[server]\ndrain_seconds = 10.0\n", upstream=upstream)
        raw = lines(running.port, "Content-Length: 2") + b"{}"
        with stand.client(running) as waiting, stand.client(running) as client:
            prime(client, raw)
            waiting.request("POST", "/groq/v1/hold", b"{}")
            upstream.wait(lambda: bool(held))
            before = len(upstream.requests)
            client.send(raw[:-4])  # a head begun before the signal
            running.process.send_signal(signal.SIGTERM)
            until(
                lambda: "drain" in running.output() or "shutting" in running.output() or "stopping" in running.output()
            )
            client.push(raw[-4:])
            response = client.response()
            assert response.code == "shutting_down"
            assert response.header("connection") == "close"
            assert client.closed()
            assert len(upstream.requests) == before
            held[0].send(answer(200, b"held"))
            assert waiting.response().body == b"held"
        assert running.process.wait(PATIENCE) == 0
