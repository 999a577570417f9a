"""The canary: a daemon that knows only marked secrets is talked to, broken and asked about everything; nothing shows them.

What is searched for is each secret, and each token made of one, in every spelling that ``redaction.leaks`` knows: raw, three
phases of base64 in both alphabets, hex, percent- and JSON-escaped. The first test plants such leaks in every kind of output
that the others search, and finds all of them.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import pprint
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil
import pytest
from daemons import run_command
from upstream import Upstream, answer

from proxy import app
from proxy import daemon as server
from proxy.config.settings import load
from proxy.emulator import Emulator, World
from proxy.emulator.faults import FAULTS
from proxy.gateway import access, dispatch, ending, pages, routing
from proxy.gateway.active_config import ActiveConfig
from proxy.gateway.destinations import lava as destination
from proxy.gateway.destinations.lava import LavaDestination
from proxy.gateway.gateway import Gateway
from proxy.gateway.template import Template
from proxy.lava import tokens
from proxy.observe import logs, metrics
from proxy.protocol import headers
from proxy.protocol.redaction import Redactor, leaks
from proxy.upstream import UpstreamError
from proxy.upstream.heads import ResponseHeads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemons import StartDaemon

    from proxy.app import Application
    from proxy.config.settings import Settings
    from proxy.upstream import UpstreamRequest

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc")


def made_up(prefix: str, seed: str) -> str:
    """A key that is nobody's, with characters that base64, URLs and JSON each spell differently."""
    return prefix + base64.b64encode(hashlib.sha256(seed.encode()).digest()).decode()[:30].replace("=", "_")


KEY = made_up("aks_live_", "account")
OWN_KEY = made_up("aks_live_", "project")
READY_KEY = made_up("aks_live_", "ready")
PROVIDER_KEY = made_up("sk-", "provider")
CLIENT_KEY = made_up("sk-", "client")
LOCAL = made_up("local-", "server")
PASSWORD = made_up("", "proxy")
READY = tokens.mint_token(READY_KEY, connection_id="conn_demo", meter_slug="demo-chat")
LOCAL_OF = {
    name: made_up("local-", name) for name in ("main", "site", "trial", "costs", "lab", "own", "ready", "agent")
}

ENVIRON = {"KEY": KEY, "OWN": OWN_KEY, "PROVIDER": PROVIDER_KEY, "LOCAL": LOCAL, "READY": READY}
ENVIRON |= {f"LOCAL_{name.upper()}": key for name, key in LOCAL_OF.items()}
SECRETS = [KEY, OWN_KEY, READY_KEY, PROVIDER_KEY, CLIENT_KEY, LOCAL, READY, *LOCAL_OF.values()]

PROJECTS = """
default_project = "main"
[projects.main]
keys = ["env:LOCAL_MAIN"]
[projects.site]
keys = ["env:LOCAL_SITE"]
connection_id = "conn_demo"
meter = "demo-chat"
metadata = { team = "web" }
[projects.trial]
keys = ["env:LOCAL_TRIAL"]
customer_id = "conn_empty"
meter = "website-chat"
disable_billing = true
[projects.costs]
keys = ["env:LOCAL_COSTS"]
meter = "internal"
[projects.lab]
keys = ["env:LOCAL_LAB"]
byok = { openai = "env:PROVIDER", anthropic = "client", google = "client" }
[projects.own]
keys = ["env:LOCAL_OWN"]
secret_key = "env:OWN"
[projects.ready]
keys = ["env:LOCAL_READY"]
forward_token = "env:READY"
[projects.agent]
keys = ["env:LOCAL_AGENT"]
spend_key = "env:SPEND"
[models]
fast = "groq/llama-3.1-8b-instant"
"""


def configured(base_url: str, more: str = "") -> str:
    """Every kind of project, local keys, and a log that says all it can."""
    lava = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{base_url.rstrip("/")}"\n'
    limits = "[upstream]\nfirst_byte = 1.5\nidle = 0.7\n"
    return f'{PROJECTS}{lava}{limits}[server]\nkeys = ["env:LOCAL"]\nallowed_origins = ["https://app.example"]\n{more}'


# --- the search ------------------------------------------------------------------------------------------------------


class Outputs:
    """Everything that came out somewhere, by where; ``found`` says what of it gives a secret away."""

    def __init__(self) -> None:
        self.said: dict[str, bytes] = {}

    def add(self, where: str, what: bytes | str) -> None:
        data = what if isinstance(what, bytes) else what.encode("utf-8", "surrogatepass")
        self.said[where] = self.said.get(where, b"") + b"\n" + data

    def found(self, values: list[str]) -> list[str]:
        return [f"{where}: {leak}" for where, data in self.said.items() for leak in leaks(data, values)]


SPELLINGS: dict[str, Callable[[str], str]] = {
    "raw": lambda value: value,
    **{
        f"base64 after {phase}": lambda value, phase=phase: base64.b64encode(
            b"x" * phase + value.encode() + b"yz"
        ).decode()  # type: ignore[misc]
        for phase in range(3)
    },
    **{
        f"url-safe after {phase}": lambda value, phase=phase: (  # type: ignore[misc]
            base64.urlsafe_b64encode(b"x" * phase + value.encode()).decode().rstrip("=")
        )
        for phase in range(3)
    },
    "hex": lambda value: value.encode().hex(),
    "percent": lambda value: quote(value, safe=""),
    "JSON": lambda value: "".join(f"\\u{ord(character):04x}" for character in value),
}
#: How a leak would look in each kind of output.
KINDS: dict[str, Callable[[str], str]] = {
    "a log line": lambda leak: json.dumps({"event": "request", "path": f"/v1/{leak}", "status": 200}),
    "a traceback": lambda leak: f'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: {leak!r}',
    "a response": lambda leak: (
        f'HTTP/1.1 400 Bad Request\r\nx-echo: {leak}\r\n\r\n{{"error": {{"message": "{leak}"}}}}'
    ),
    "the metrics": lambda leak: f'lava_proxy_requests_total{{project="{leak}",status="200"}} 1.0',
    "a command line": lambda leak: f"python\0-m\0proxy\0serve\0--key={leak}\0",
}


@pytest.mark.parametrize("value", [KEY, READY])
def test_fifty_planted_leaks_are_found_in_every_kind_of_output(value: str) -> None:
    """Ten spellings in five kinds of output: 50 of 50 are found, in the right place; of another secret none."""
    outputs = Outputs()
    for kind, shape in KINDS.items():
        for spelling, spell in SPELLINGS.items():
            outputs.add(f"{kind}, {spelling}", shape(spell(value)))
    assert len(outputs.said) == 50
    found = outputs.found([value])
    assert [leak.split(":")[0] for leak in found] == list(outputs.said)
    assert value not in "".join(found)
    assert outputs.found([made_up("aks_live_", "nobody")]) == []


# --- a broad conversation --------------------------------------------------------------------------------------------


def exchange(port: int, raw: bytes, patience: float = 10.0) -> bytes:
    """Everything that the daemon says to these bytes until it closes."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as sock, contextlib.suppress(OSError):
        sock.sendall(raw)
        while data := sock.recv(65_536):
            said += data
    return said


def request(port: int, method: str, target: str, content: bytes = b"", *fields: str, host: str | None = None) -> bytes:
    """The bytes of a request that ends its connection."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{port}'}", "Connection: close", *fields]
    if content:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def bearer(key: str) -> str:
    return f"Authorization: Bearer {key}"


def fault_names() -> list[str]:
    """Each fault of the emulator once, with a number where it wants one."""
    numbers = {"NNN": "418", "N": "1", "S": "0.05"}
    return [re.sub(r"(NNN|N|S)$", lambda match: numbers[match[1]], name) for name in FAULTS]


CALLS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]},
    "/v1/messages": {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]},
    "/v1beta/models/gemini-2.5-flash:{}": {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]},
}


def conversations(port: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of many requests: every project, every fault in three dialects, streaming or not."""
    for fault in ("", *fault_names()):
        for path, document in CALLS.items():
            for stream in (False, True):
                target = path.format("streamGenerateContent?alt=sse" if stream else "generateContent")
                content = json.dumps({**document, "stream": stream} if "{}" not in path else document).encode()
                more = [f"x-emulator-fault: {fault}"] if fault else []
                yield f"fault {fault} at {target}", request(port, "POST", target, content, bearer(LOCAL), *more)
    for project, key in LOCAL_OF.items():
        for fault in (
            "",
            "lava-401",
            "lava-402",
            "provider-401",
            "provider-402",
            "echo-token",
            "spend-limit",
            "html-502",
        ):
            for path, document in list(CALLS.items())[:2]:
                more = [f"x-emulator-fault: {fault}"] if fault else []
                both = [f"x-lava-proxy-key: {key}", bearer(CLIENT_KEY), f"x-api-key: {CLIENT_KEY}"]
                content = json.dumps(document).encode()
                yield f"project {project}, {fault}", request(port, "POST", path, content, *both, *more)
        yield f"models of {project}", request(port, "GET", "/v1/models", b"", bearer(key))
        yield f"the wrong project of {project}", request(port, "GET", "/p/nobody/v1/models", b"", bearer(key))
        yield f"the wrong key {project}", request(port, "GET", "/v1/models", b"", bearer(key + "x"))


def misplaced(port: int, secret: str) -> Iterator[tuple[str, bytes]]:
    """Requests with a secret where none belongs."""
    url = quote(secret, safe="")
    chat = json.dumps({"model": secret, "messages": []}).encode()
    places: dict[str, tuple[str, str, bytes, list[str], str | None]] = {
        "query": ("GET", f"/openai/v1/files?key={url}&api_key={url}", b"", [], None),
        "path": ("GET", f"/openai/v1/files/{url}", b"", [], None),
        "first word": ("GET", f"/{url}/v1/files", b"", [], None),
        "project in the path": ("GET", f"/p/{url}/v1/models", b"", [], None),
        "project header": ("GET", "/v1/models", b"", [f"x-lava-proxy-project: {secret}"], None),
        "model": ("POST", "/v1/chat/completions", chat, [], None),
        "model at a provider": (
            "POST",
            "/v1/chat/completions",
            chat.replace(b'"model": "', b'"model": "groq/'),
            [],
            None,
        ),
        "method": (secret.replace("/", "-").replace("+", "-"), "/v1/models", b"", [], None),
        "host": ("GET", "/healthz", b"", [], re.sub(r"[^A-Za-z0-9-]", "-", secret)),
        "origin": ("GET", "/v1/models", b"", [f"Origin: https://{secret}"], None),
        "cookie": ("GET", "/openai/v1/files", b"", [f"Cookie: key={secret}"], None),
        "user agent": ("GET", "/openai/v1/files", b"", [f"User-Agent: {secret}"], None),
        "metadata": ("GET", "/openai/v1/files", b"", [f'x-lava-metadata: {{"k": "{secret}"'], None),
        "a broken line": ("GET", "/openai/v1/files", b"", [f"{secret} broken"], None),
        "content length": ("GET", "/openai/v1/files", b"", [f"Content-Length: {secret}"], None),
    }
    for place, (method, target, content, fields, host) in places.items():
        yield f"{place} has a secret", request(port, method, target, content, bearer(LOCAL), *fields, host=host)


BAD_CONFIGS = [
    f'[lava]\nsecret_key = ["{KEY}"]\n',
    f'[lava]\nsecret_key = "{KEY}\n',
    f'[server]\nkeys = "{LOCAL}"\n[projects.x]\nspend_key = {{ a = "{PROVIDER_KEY}" }}\n',
    f'[lava]\nsecret_key = "{KEY}\\n"\n[server]\nprot = "{LOCAL}"\n',
    f'[upstream]\nproxy = "http://me:{PASSWORD}@proxy.example:x"\n',
]


def process_outputs(pid: int) -> Iterator[tuple[str, str]]:
    """What other programs of this machine can see of a process: words, title, names of its files and threads."""
    proc = Path(f"/proc/{pid}")
    yield "cmdline", (proc / "cmdline").read_text()
    yield "comm", (proc / "comm").read_text() + (proc / "status").read_text()
    yield "files", "\n".join(os.readlink(each) for each in (proc / "fd").iterdir() if each.is_symlink())
    yield "threads", "\n".join((each / "comm").read_text() for each in (proc / "task").iterdir())


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def lava() -> Iterator[Emulator]:
    """An offline Lava that takes the keys of this module."""
    world = World.demo(secret_key=KEY)
    with Emulator(world) as running:
        yield running


@linux
@pytest.mark.timeout(180)
def test_a_broad_conversation_gives_nothing_away(daemon: StartDaemon, lava: Emulator, tmp_path: Path) -> None:
    """SEC-01, SEC-03, SEC-04, SEC-05: some 600 requests of all kinds, bad reloads, all control addresses and commands, at
    level debug: no answer, log, metric, command or entry of ``/proc`` has a secret or a token in any spelling."""
    spend = lava.world.keys.spend_keys["openai"]
    values = [*SECRETS, spend, tokens.mint_token(KEY), tokens.mint_token(KEY, meter_slug="internal")]
    log_file = tmp_path / "daemon.jsonl"
    text = configured(lava.base_url, f'[log]\nlevel = "debug"\nformat = "json"\nfile = "{log_file}"\n')
    running = daemon(text, env={**ENVIRON, "SPEND": spend}, secrets=values)
    outputs, port = Outputs(), running.port

    odd = [each for value in (KEY, LOCAL, READY) for each in misplaced(port, value)]
    planned = [*conversations(port), *odd]
    with ThreadPoolExecutor(8) as pool:
        for (name, _), said in zip(planned, pool.map(lambda each: exchange(port, each[1]), planned), strict=True):
            assert said.startswith(b"HTTP/1.1 ") or "no-answer" in name, (name, said[:200])
            # What a provider says about a client's own misplaced secret is passed on to that client; we never repeat it.
            if name not in dict(odd) or b"x-lava-proxy-error" in said:
                outputs.add(name, said)
    for path in ("/", "/healthz", "/readyz", "/metrics", "/dashboard", "/p/lab", "/api"):
        for fields in ([], [bearer(LOCAL)], [bearer(LOCAL), "Accept: text/html"], [bearer(LOCAL_OF["lab"])]):
            outputs.add(f"GET {path}", exchange(port, request(port, "GET", path, b"", *fields)))
    assert b"lava_proxy_requests_total" in outputs.said["GET /metrics"]

    good = running.config.read_text()
    for number, bad in enumerate(BAD_CONFIGS):
        running.config.write_text(bad)
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda number=number: log_file.read_text().count("was not reloaded") > number)  # type: ignore[misc]
    running.config.write_text(good)
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "configuration reloaded" in log_file.read_text())

    for name, said_there in process_outputs(running.process.pid):
        outputs.add(f"/proc: {name}", said_there)
    for words in (
        ["check"],
        ["check", "--json"],
        ["health"],
        ["health", "--json"],
        *(["token", name] for name in LOCAL_OF),
    ):
        done = command(tmp_path, [*words, "--config", str(running.config)], {**ENVIRON, "SPEND": spend, **at(port)})
        assert done.returncode == 0, (words, done.stderr)
        outputs.add(" ".join(words), done.stdout + done.stderr)

    assert running.stop() == 0
    outputs.add("stdout and stderr", running.output())
    outputs.add("the log file", log_file.read_bytes())
    assert log_file.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in log_file.read_text().splitlines()]
    assert sum(line["event"] == "request" for line in lines) > 350
    assert outputs.found(values) == []


def at(port: int) -> dict[str, str]:
    return {"LAVA_PROXY_SERVER__PORT": str(port)}


def command(folder: Path, words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One run of ``lava-proxy``."""
    done = run_command(words, home=folder, env=env)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_only_reveal_reveals(tmp_path: Path) -> None:
    """The control of the commands: ``token --reveal`` shows the token, and the search sees it; ``init`` shows its own key to
    nobody but its file, which is for its owner alone."""
    config = tmp_path / "config.toml"
    config.touch(mode=0o600)
    config.write_text(configured("http://127.0.0.1:1"))
    env = {**ENVIRON, "SPEND": LOCAL}
    plain = command(tmp_path, ["token", "site", "--config", str(config)], env)
    assert plain.returncode == 0
    assert leaks(plain.stdout + plain.stderr, SECRETS) == []
    revealed = command(tmp_path, ["token", "site", "--reveal", "--config", str(config)], env)
    assert leaks(revealed.stdout, [KEY])
    for words in (
        ["--version"],
        ["--help"],
        ["serve", "--help"],
        ["emulator", "--help"],
        ["token", "nobody", "--config", str(config)],
    ):
        done = command(tmp_path, words, {**env, "LAVA_SECRET_KEY": KEY})
        assert leaks(done.stdout + done.stderr, SECRETS) == [], words


@pytest.mark.parametrize("bad", range(len(BAD_CONFIGS)))
def test_commands_tell_what_is_wrong_and_not_what_was_written(tmp_path: Path, bad: int) -> None:
    """SEC-06: every command on a configuration with a secret in the wrong place, form or type: 78, and no secret."""
    config = tmp_path / "config.toml"
    config.touch(mode=0o600)
    config.write_text(BAD_CONFIGS[bad])
    values = [*SECRETS, PASSWORD]
    for words in (["serve"], ["check", "--json"], ["token", "main"], ["health"]):
        done = command(tmp_path, [*words, "--config", str(config)], ENVIRON)
        assert done.returncode == 78, (words, done.stderr)
        assert leaks(done.stdout + done.stderr, values) == [], words
    for name, value in (
        ("SERVER__KEYS", f'["{LOCAL}"'),
        ("PROJECTS", f'{{"a": {{"spend_key": ["{KEY}"]}}}}'),
        ("LAVA__SECRET_KEY", f"{KEY}\n"),
    ):
        done = command(tmp_path, ["check"], {f"LAVA_PROXY_{name}": value})
        assert done.returncode == 78, done.stdout
        assert leaks(done.stdout + done.stderr, values) == [], name


def test_the_password_of_an_outbound_proxy_stays_here(daemon: StartDaemon, free_port: int) -> None:
    """A proxy that cannot be reached, and one that refuses: what is told names neither its password nor our key."""
    refusal = answer(407, b"denied", [(b"Proxy-Authenticate", b"Basic")])
    with Upstream(refusal) as outbound:
        for port in (free_port, outbound.port):
            basic = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
            url = f"http://me:{quote(PASSWORD, safe='')}@127.0.0.1:{port}"
            config = f'[lava]\nsecret_key = "env:KEY"\n[upstream]\nproxy = "{url}"\n[log]\nlevel = "debug"\n'
            running = daemon(config, env=ENVIRON, secrets=[*SECRETS, PASSWORD, basic])
            said = exchange(running.port, request(running.port, "GET", "/openai/v1/files"))
            assert said.startswith(b"HTTP/1.1 50"), said[:300]
            assert leaks(said, [*SECRETS, PASSWORD, basic]) == []
            assert running.stop() == 0
            assert '"event":"request"' in running.output()


# --- faults of our own, in thirty places and more --------------------------------------------------------------------


class Scripted:
    """An engine and its answer in one: gives ``raw`` parts, or raises where it is told to."""

    status = 200
    framing = "chunked"

    def __init__(self, **options: Any) -> None:
        self.headers: Any = [(b"content-type", b"text/event-stream")]
        self.parts = [b'data: {"model":"m"}\n\n', b"data: [DONE]\n\n", b""]
        self.fail: dict[str, BaseException] = {}
        for name, value in options.items():
            setattr(self, name, value)

    async def aclose(self) -> None:
        """Nothing is open."""

    async def open(self, out: UpstreamRequest, body: object = None, content_length: int | None = None) -> Any:
        token = dict(out.headers)[b"authorization"]
        assert token
        self._raise("open")
        return self

    async def read(self) -> bytes:
        if len(self.parts) < 3:
            self._raise("second read")
        self._raise("read")
        return self.parts.pop(0)

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        while piece := await self.read():
            take(piece)
        return True

    def whole(self) -> bytes | None:
        return None

    def close(self) -> None:
        self._raise("close")

    def _raise(self, where: str) -> None:
        held = KEY + tokens.mint_token(KEY)
        assert held
        if where in self.fail:
            raise self.fail[where]


class Rude(Exception):
    """Shows a secret whatever way it is asked."""

    def __str__(self) -> str:
        return f"rude {KEY}"

    def __repr__(self) -> str:
        return f"Rude({tokens.mint_token(KEY)})"


def booms() -> list[Exception]:
    """Exceptions that carry secrets in as many ways."""
    token = tokens.mint_token(KEY)
    noted = RuntimeError("noted")
    noted.add_note(f"the token was {token}")
    chained = ValueError(f"outer {KEY}")
    chained.__cause__ = KeyError(token)
    inner = TypeError("inner")
    inner.__context__ = OSError(5, KEY, token)
    return [
        ValueError(KEY),
        KeyError({"secret_key": KEY}),
        noted,
        chained,
        inner,
        ExceptionGroup(KEY, [ValueError(token), Rude()]),
        Rude(),
        UnicodeDecodeError("utf-8", token.encode() + b"\xff", 0, 1, KEY),
        json.JSONDecodeError("Expecting value", token, 0),
        OSError(2, "No such file", f"/secrets/{KEY}"),
        AttributeError(f"b'Bearer {token}'"),
        UpstreamError("protocol", True, f"detail {KEY}"),
    ]


#: What the cases of hostile-cases.json (SEC-02) do not let fail: the log, the count, what is remembered and what is told.
PLACES: dict[str, tuple[Any, str]] = {
    "Logs.request": (logs.Logs, "request"),
    "Metrics.observe": (metrics.Metrics, "observe"),
    "LavaDestination.credential": (LavaDestination, "credential"),
    "LavaDestination.address": (LavaDestination, "address"),
    "ActiveConfig.usable": (ActiveConfig, "usable"),
    "ActiveConfig.redactor_of_all": (ActiveConfig, "redactor_of_all"),
    "gate.key_of": (access, "key_of"),
    "destination.UpstreamRequest": (destination, "UpstreamRequest"),
    "dispatch.unreachable": (dispatch, "unreachable"),
    "ending.error_event": (ending, "error_event"),
    "pages.about": (pages, "about"),
    "Gateway.release": (Gateway, "release"),
}
ENGINES: dict[str, Callable[[Exception], Any]] = {
    "open fails": lambda boom: Scripted(fail={"open": boom}),
    "read fails": lambda boom: Scripted(fail={"read": boom}),
    "read fails later": lambda boom: Scripted(fail={"second read": boom}),
    "close fails": lambda boom: Scripted(fail={"close": boom}),
    "an error answer cannot be read": lambda boom: Scripted(status=400, fail={"read": boom}),
    "no headers": lambda boom: Scripted(headers=None),
    "headers that are no bytes": lambda boom: Scripted(headers=[(KEY, KEY)]),
    "a header with a line end": lambda boom: Scripted(headers=[(b"x", b"a\r\nb: " + KEY.encode())]),
    "a status that is none": lambda boom: Scripted(status=KEY),
    "a body that is text": lambda boom: Scripted(parts=[KEY, b""]),
    "a length that is wrong": lambda boom: Scripted(
        framing="length", headers=[(b"content-length", b"3")], parts=[KEY.encode(), b""]
    ),
    "no engine": lambda boom: None,
}
ASKED: list[tuple[str, str, bytes, tuple[str, ...]]] = [
    ("POST", "/v1/chat/completions", json.dumps({**CALLS["/v1/chat/completions"], "stream": True}).encode(), ()),
    ("POST", "/p/site/v1/messages", json.dumps(CALLS["/v1/messages"]).encode(), ('x-lava-metadata: {"a": "b"}',)),
    ("POST", "/p/lab/anthropic/v1/messages", b"{}", (f"x-api-key: {CLIENT_KEY}", "Content-Encoding: gzip")),
    ("GET", "/v1/models", b"", ()),
    ("GET", "/metrics", b"", ()),
    ("GET", "/readyz", b"", ()),
    ("GET", "/", b"", ()),
    ("GET", "/nowhere", b"", ()),
]


@pytest.fixture
def settings_of_all(tmp_path: Path) -> Settings:
    """The settings with every kind of project, on a port of their own."""
    config = tmp_path / "all.toml"
    config.touch(mode=0o600)
    config.write_text(
        configured("http://127.0.0.1:1", 'host = "127.0.0.1"\nport = 0\n[log]\nlevel = "debug"\nformat = "json"\n')
    )
    return load(config, {**ENVIRON, "SPEND": LOCAL})


class Broken:
    """A daemon in this process whose engine is ours, with its log in a file."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.log_file = folder / "broken.jsonl"
        self.settings = settings.model_copy(
            update={"log": settings.log.model_copy(update={"file": str(self.log_file)})}
        )
        self.logs = logs.configure(self.settings.log, Redactor(settings.secrets()))
        self.app: Application | None = None

    def create(self, settings: Settings) -> Application:
        self.app = app.create_app(settings, log=self.logs)
        return self.app

    def ask(self, port: int, outputs: Outputs, name: str, asked: tuple[str, str, bytes, tuple[str, ...]]) -> None:
        method, target, content, fields = asked
        raw = request(port, method, target, content, f"x-lava-proxy-key: {LOCAL}", *fields)
        outputs.add(f"{name}: {method} {target}", exchange(port, raw, patience=5.0))


@pytest.mark.timeout(120)
def test_faults_in_a_hundred_and_fifty_ways_show_nothing(
    settings_of_all: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """SEC-02: an engine and its answers that break in every way, with every kind of exception that carries the key, and
    faults where requests are told and counted: answers and log hold no secret, and the daemon lives."""
    broken, outputs = Broken(settings_of_all, tmp_path), Outputs()
    kinds, ways = booms(), 0
    with server.background(broken.settings, create_app=broken.create) as daemon:
        port = int(daemon.addresses[0].rpartition(":")[2])
        assert broken.app is not None
        served = broken.app.runtime.config
        engine = served.engine
        for name, make in ENGINES.items():
            for boom in kinds:
                served.engine = make(boom)
                broken.ask(port, outputs, name, ASKED[ways % 4])
                ways += 1
        for number, (name, (owner, attribute)) in enumerate(PLACES.items()):

            def fail(*_: Any, boom: Exception = kinds[number], **__: Any) -> Any:
                held = [KEY]
                assert held
                raise boom

            with monkeypatch.context() as patch:
                served.engine = Scripted(status=200 if number % 3 else 401)
                patch.setattr(owner, attribute, fail)
                for asked in ASKED:
                    broken.ask(port, outputs, name, asked)
                ways += 1
        served.engine = engine
        assert b"200 OK" in exchange(port, request(port, "GET", "/healthz"))
    broken.logs.close()
    text, captured = broken.log_file.read_text(), capfd.readouterr()
    assert ways >= 150
    assert not any(b"Traceback" in said for said in outputs.said.values())
    outputs.add("the log", text)
    outputs.add("stdout and stderr", captured.out + captured.err)
    assert outputs.found([*SECRETS, tokens.mint_token(KEY)]) == []
    told = [line["exception"] for line in map(json.loads, text.splitlines()) if "exception" in line]
    assert len(told) >= 50
    assert all("Traceback" in each and "proxy/" in each for each in told)


# --- dumps of what lives in memory -----------------------------------------------------------------------------------


def shown(thing: object) -> Iterator[str]:
    """Everything that a careless line of code could make of an object."""
    yield from (repr(thing), str(thing), f"{thing}", pprint.pformat(thing), repr([thing]))
    with contextlib.suppress(TypeError):
        yield repr(vars(thing))
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        yield repr(dataclasses.asdict(thing))
        yield repr(dataclasses.astuple(thing))
    for name in ("model_dump", "model_dump_json", "dict", "json", "__getstate__"):
        with contextlib.suppress(Exception):
            yield repr(getattr(thing, name)())
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with contextlib.suppress(Exception):
            yield repr(pickle.dumps(thing, protocol))
    with contextlib.suppress(Exception):
        yield json.dumps(thing, default=vars)
    with contextlib.suppress(Exception):
        yield json.dumps(thing, default=str)


@pytest.mark.filterwarnings("ignore:The `(dict|json)` method is deprecated")
def test_no_dump_of_anything_that_lives_shows_a_secret(settings_of_all: Settings) -> None:
    """SEC-07: settings, each part of them, the active configuration and what it keeps: credentials, redactors, routes; what is prepared."""
    made_ready = ActiveConfig(settings_of_all, Scripted())
    things: dict[str, object] = {"settings": settings_of_all, "configuration": made_ready}
    for part in ("server", "lava", "upstream", "log"):
        things[part] = getattr(settings_of_all, part)
    for name, project in settings_of_all.projects.items():
        things[f"project {name}"] = project
        things[f"lava of {name}"] = made_ready.destination.address(name)
        provider = "openai"
        made = made_ready.destination.credential(name, provider, CLIENT_KEY)
        things[f"credential of {name}"] = made
        things[f"redactor of {name}"] = made_ready.redactor(made)
        things[f"mask of {name}"] = made_ready.redactor(made).stream()
        sent = [(b"authorization", b"Bearer " + CLIENT_KEY.encode())]
        template = Template(made_ready, "POST", b"/openai/v1/chat/completions", b"", headers.read(sent))
        template.endpoint = routing.locate("POST", template.path, {}, made_ready.table)
        route = routing.route("POST", template.endpoint, b"", name, None, made_ready.table)
        prepared = made_ready.destination.prepare(template, route)
        prepared.outgoing._lines = b"authorization: " + prepared.credential.authorization
        template.prepared[None] = prepared
        things[f"route of {name}"] = route
        things[f"prepared for {name}"] = prepared
        things[f"outgoing of {name}"] = prepared.outgoing
        things[f"template of {name}"] = template
        heads = ResponseHeads()
        heads.read(b"HTTP/1.1 401 No\r\nx-echo: " + prepared.credential.authorization[:200])
        things[f"heads that echo {name}"] = heads
    client = made_ready.destination.credential("lab", "anthropic", CLIENT_KEY)
    things["credential with the tool's own key"] = client
    things["all credentials"] = made_ready.destination._credentials
    values = [
        *SECRETS,
        *(each.authorization.decode().removeprefix("Bearer ") for each in made_ready.destination._credentials.values()),
    ]
    for name, thing in things.items():
        for text in shown(thing):
            assert leaks(text, values) == [], name
    # The control: the secrets are in there, for those who ask properly.
    assert leaks(client.authorization, [CLIENT_KEY])
    assert {*SECRETS} - {CLIENT_KEY, READY_KEY} <= set(settings_of_all.secrets())


# --- asked for it, and forged ----------------------------------------------------------------------------------------


def test_nobody_gets_a_debugger(settings_of_all: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SEC-12: whoever asks for debug output of a failing request gets the same plain 500 as everybody."""
    broken = Broken(settings_of_all, tmp_path)

    def fail(*_: object) -> None:
        raise RuntimeError(f"inside {KEY}")

    bodies = set()
    with server.background(broken.settings, create_app=broken.create) as daemon:
        port = int(daemon.addresses[0].rpartition(":")[2])
        monkeypatch.setattr(metrics.Metrics, "render", fail)
        for target in (
            "/metrics",
            "/metrics?debug=1",
            "/metrics?debug=true&trace=1",
            "/metrics?__debugger__=yes&cmd=resource&f=style.css",
        ):
            for fields in (
                [],
                ["X-Debug: 1"],
                ["Accept: text/html"],
                ["Accept: text/html", "Cookie: debug=1", "X-Debug-Token: 1"],
            ):
                said = exchange(port, request(port, "GET", target, b"", bearer(LOCAL), *fields))
                assert said.startswith(b"HTTP/1.1 500")
                assert not re.search(rb"Traceback|RuntimeError|inside|\.py|<html", said)
                bodies.add(re.sub(rb"req_[0-9a-f]{24}", b"", said.partition(b"\r\n\r\n")[2]))
    broken.logs.close()
    assert len(bodies) == 1
    assert b"internal_error" in bodies.pop()
    assert leaks(broken.log_file.read_bytes(), [KEY]) == []


FORGERIES = [
    '"},{"level":"error","event":"forged"}',
    "%22,%22event%22:%22forged%22",
    "%1b[31mred%1b[0m",
    "%0d%0a{%22event%22:%22forged%22}",
    "%e2%80%a8forged",
    "%e2%80%aeforged",
    "\\n\\u001b[31mforged",
]


def test_no_request_and_no_answer_forges_a_line_for_people(daemon: StartDaemon) -> None:
    """SEC-15, in the console's form: line ends, escapes, direction marks and JSON in path, query, model, headers and in what
    the upstream says: one event is one line, and a terminal finds nothing to act on."""
    escape = "\x1b[2J\u202e\u2028"
    said = json.dumps({"model": f"m{escape}\r\nforged", "usage": {"prompt_tokens": 1}}).encode()
    odd = [(b"x-lava-request-id", b"req\x1b[31m"), (b"Content-Type", b"application/json")]
    with Upstream(answer(200, said, [*odd[1:], (b"x-lava-request-id", b"req_\xe2\x80\xae")])) as upstream:
        config = (
            f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n[log]\nlevel = "debug"\nformat = "console"\n'
        )
        running = daemon(config, env=ENVIRON, secrets=[KEY])
        port, count = running.port, 0
        for forgery in FORGERIES:
            document = json.dumps({"model": f"{forgery}\r\n{escape}forged\x85"}).encode()
            target = quote(forgery, safe="%/:")
            for raw in (
                request(port, "GET", f"/openai/v1/{target}"),
                request(port, "GET", f"/{target}/v1"),
                request(port, "GET", f"/openai/v1/files?{target}"),
                request(port, "POST", "/v1/chat/completions", document),
                request(port, "GET", "/v1/models", b"", f"x-lava-proxy-project: {forgery}"),
                request(port, "GET", "/openai/v1/files", b"", f"User-Agent: {forgery}", f"Origin: {forgery}"),
            ):
                assert exchange(port, raw).startswith(b"HTTP/1.1 ")
                count += 1
        assert running.stop() == 0
    lines = running.output().split("\n")
    # A request's row begins with the second and the status.
    assert sum(re.match(r"\d\d:\d\d:\d\d \d{3} ", line) is not None for line in lines) == count
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", "".join(lines))


# --- no core ---------------------------------------------------------------------------------------------------------


@linux
def test_a_daemon_that_dies_leaves_no_core(daemon: StartDaemon, tmp_path: Path) -> None:
    """Core dumps are off and the process is not dumpable, so a crash writes its memory nowhere."""
    import resource

    # What a careless service manager would give it.
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        running = daemon('[lava]\nsecret_key = "env:KEY"\n', env=ENVIRON, secrets=[KEY], fork=False)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    pid = running.process.pid
    assert psutil.Process(pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)
    # Not dumpable: even what is its own belongs to root, so no other program of the same user may read it.
    for name in ("environ", "mem", "maps"):
        assert Path(f"/proc/{pid}/{name}").stat().st_uid == 0
    running.process.send_signal(signal.SIGABRT)
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert ended.si_code == os.CLD_KILLED  # not CLD_DUMPED
    assert running.process.wait(10) == -signal.SIGABRT
    assert [path.name for path in running.config.parent.iterdir() if "core" in path.name] == []


def test_what_it_writes_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Under umask 000: what ``init`` writes, and its directory, are closed to everybody else."""
    old = os.umask(0)
    try:
        done = command(tmp_path, ["init"], {"XDG_CONFIG_HOME": str(tmp_path / "config")})
    finally:
        os.umask(old)
    assert done.returncode == 0, done.stderr
    (written,) = [path for path in (tmp_path / "config").rglob("*") if path.is_file()]
    assert written.stat().st_mode & 0o777 == 0o600
    key = re.search(r'keys = \["([^"]{16,})"\]', written.read_text())
    assert key is not None


# --- what is written about it ----------------------------------------------------------------------------------------


def test_the_threat_model_names_tests_that_exist() -> None:
    """Every promise of docs/security.md has a test beside it, and every test and case that it names is there."""
    root = Path(__file__).parent.parent
    text = (root / "docs" / "security.md").read_text(encoding="utf-8")
    for path, name in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text):
        code = (root / path).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in code, f"{path} has no {name}"
    cases = {case["id"] for case in json.loads((root / "tests" / "hostile-cases.json").read_text())["cases"]}
    named = set(re.findall(r"\b[A-Z]{3}-\d\d\b", text))
    assert named
    assert named <= cases
    promised = text.partition("## What is promised")[2].partition("## What is not promised")[0]
    rows = [row for row in promised.splitlines() if row.startswith("| ") and not row.startswith("| promise")]
    assert len(rows) > 25
    assert all(re.search(r"`tests/|[A-Z]{3}-\d\d", row.split(" | ")[1]) for row in rows)
    assert "docs/security.md" in (root / "SECURITY.md").read_text(encoding="utf-8")
