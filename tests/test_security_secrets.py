"""Secrets: nothing that a daemon prints or sends holds a key in any spelling."""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import gzip
import importlib
import json
import pickle
import pprint
import random
import re
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import brotli  # type: ignore[import-untyped]
import psutil
import pytest
import zstandard
from daemons import run_command
from security_stand import (
    CHAT,
    LAVA_KEY,
    LOCAL_KEY,
    PROVIDER_KEY,
    SECRETS,
    SSE_HEAD,
    STREAM,
    TOKEN,
    Client,
    Stand,
    answers,
    case,
    error_body,
    log_lines,
    made_up,
    our_error,
    says,
    until,
)

from proxy.config.settings import ConfigError, load
from proxy.lava.tokens import mint_token
from proxy.protocol.redaction import Redactor, Secret, leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


ROOT = Path(__file__).parent.parent
HIDDEN = (*SECRETS, TOKEN)


def clean(said: str | bytes, secrets: tuple[str, ...] = HIDDEN) -> None:
    """Nothing of the secrets stands in ``said``. (It is not shown where it does.)"""
    found = leaks(said, secrets)
    assert not found, found


EVERYTHING = (
    f'[lava]\nsecret_key = "{LAVA_KEY}"\n[server]\nkeys = ["{LOCAL_KEY}"]\n[upstream]\nproxy = "http://user:{{proxy}}@127.0.0.1:1"\n'
    f'[projects.main]\nmeter = "m"\n[projects.lab.byok]\nopenai = "{PROVIDER_KEY}"\n'
    f'[projects.ready]\nforward_token = "{TOKEN}"\n[projects.agent]\nspend_key = "{{spend}}"\n'
)


def everything(folder: Path, name: str = "everything.toml") -> tuple[Path, tuple[str, ...]]:
    """A configuration that has every kind of secret, and those secrets."""
    spend, proxy = made_up("lava_sk_", "spend"), made_up("pw", "proxy").replace("/", "x")
    path = folder / name
    path.touch(mode=0o600)
    path.write_text('default_project = "main"\n' + EVERYTHING.format(spend=spend, proxy=proxy))
    return path, (*HIDDEN, spend, proxy)


@case("SEC-01")
def test_logs_at_every_level(stand: Stand) -> None:
    echo_all = error_body(f"you sent {TOKEN} and {LAVA_KEY}")
    with stand.playing(answers(401, echo_all, [(b"X-Echo", TOKEN.encode()), (b"Set-Cookie", TOKEN.encode())])):
        for path in ("/v1/chat/completions", "/v1/messages", f"/openai/v1/{LAVA_KEY}", f"/openai/v1/x?key={LAVA_KEY}"):
            stand.post(path, {"model": LAVA_KEY, "x": TOKEN}, {"Authorization": f"Bearer {LAVA_KEY}", "X-Any": TOKEN})
    with stand.playing(says(b"HTTP/1.1 200 " + TOKEN.encode() + b"\r\nbad header " + TOKEN.encode() + b"\r\n\r\n")):
        stand.post("/v1/chat/completions")
    with stand.playing(says(SSE_HEAD + b"zz " + TOKEN.encode())):
        stand.post("/v1/chat/completions", STREAM)
    encoded = base64.b64encode(b"x" + LAVA_KEY.encode()).decode().rstrip("=")
    for path in (
        f"/p/{LAVA_KEY}/v1/x",
        f"/{LAVA_KEY}/v1/x",
        f"/no/{encoded}",
        "/no/" + quote(LAVA_KEY, safe="").replace("a", "%61"),
    ):
        stand.ask("GET", path)
    # A client that asks for an unknown name hears that name again; the log does not.
    stand.tape.clear()
    word = stand.nonce()
    assert stand.ask("GET", f"/openai/v1/{word}").status == 200
    stand.line(word)  # the log has caught up
    levels = {json.loads(line)["level"] for line in log_lines(stand.daemon())}
    clean(stand.daemon().output())
    assert levels >= {"info"}
    # The control: what is looked for would be found.
    assert leaks(stand.daemon().output() + mint_token(LAVA_KEY), HIDDEN)


#: Where an exception is thrown in, one after the other: module, attribute (of a class with a dot).
PLACES = [
    ("proxy.gateway.access", "check_host"),
    ("proxy.gateway.access", "check_origin"),
    ("proxy.gateway.access", "check_key"),
    ("proxy.protocol.headers", "read"),
    ("proxy.protocol.headers", "to_client"),
    ("proxy.protocol.headers", "merge_metadata"),
    ("proxy.gateway.routing", "locate"),
    ("proxy.gateway.routing", "choose_project"),
    ("proxy.gateway.routing", "route"),
    ("proxy.gateway.routing", "check_target"),
    ("proxy.protocol.body", "raw_model"),
    ("proxy.protocol.body", "search"),
    ("proxy.protocol.body", "written"),
    ("proxy.lava.tokens", "credential"),
    ("proxy.lava.tokens", "needs_client_key"),
    ("proxy.lava.tokens", "mint_token"),
    ("proxy.gateway.destinations.lava", "LavaDestination.address"),
    ("proxy.gateway.destinations.lava", "LavaDestination.credential"),
    ("proxy.gateway.active_config", "ActiveConfig.redactor"),
    ("proxy.gateway.active_config", "ActiveConfig.project"),
    ("proxy.gateway.destinations.lava", "LavaDestination._origin"),
    ("proxy.gateway.admit", "admit"),
    ("proxy.gateway.admission", "Admission.permit"),
    ("proxy.gateway.request_body", "read"),
    ("proxy.gateway.request_body", "RequestBody.search"),
    ("proxy.gateway.request_body", "RequestBody.close"),
    ("proxy.gateway.targets", "prepare"),
    ("proxy.gateway.serve", "dispatch"),
    ("proxy.gateway.serve", "relay"),
    ("proxy.gateway.serve", "conclude"),
    ("proxy.gateway.relay", "explain"),
    ("proxy.gateway.destinations.lava", "LavaDestination.prepare"),
    ("proxy.gateway.destinations.lava", "LavaDestination.classify"),
    ("proxy.gateway.active_request", "ActiveRequest.settle"),
    ("proxy.gateway.active_request", "ActiveRequest.wait"),
    ("proxy.gateway.active_request", "Registry.add"),
    ("proxy.gateway.active_request", "Registry.remove"),
    ("proxy.gateway.gateway", "Gateway.open"),
    ("proxy.gateway.gateway", "Gateway.release"),
    ("proxy.gateway.pages", "control"),
    ("proxy.upstream.native", "NativeEngine.open"),
    ("proxy.upstream.native", "NativeEngine._connect"),
    ("proxy.upstream.native", "NativeResponse.read"),
    ("proxy.upstream.native", "NativeResponse.close"),
    ("proxy.protocol.errors", "from_answer"),
    ("proxy.protocol.errors", "body_of"),
    ("proxy.protocol.errors", "render"),
    ("proxy.protocol.usage", "Scanner.__init__"),
    ("proxy.protocol.usage", "Scanner.feed"),
    ("proxy.protocol.usage", "Scanner.finish"),
    ("proxy.gateway.model_list", "ModelList.answer"),
    ("proxy.observe.metrics", "Metrics.observe"),
    ("proxy.observe.metrics", "Metrics.render"),
    ("proxy.protocol.redaction", "Redactor.data"),
    ("proxy.protocol.dialects", "of_path"),
]


SENT = {"x-lava-proxy-key": LOCAL_KEY, "Authorization": f"Bearer {PROVIDER_KEY}"}


class Leaky(Exception):
    """An exception that says every secret there is, as a library's may."""


def _owner(module: str, attribute: str) -> tuple[Any, str] | None:
    owner: Any = importlib.import_module(module)
    *path, name = attribute.split(".")
    for part in path:
        owner = getattr(owner, part, None)
    return (owner, name) if hasattr(owner, name) else None


@contextlib.contextmanager
def broken(module: str, attribute: str) -> Iterator[list[int]]:
    """Let this function raise; counts how often it did."""
    owner, name = _owner(module, attribute) or (None, "")
    original = getattr(owner, name)
    hits = [0]

    def fail(*args: Any, **kwargs: Any) -> Any:
        token, local_key = TOKEN, LOCAL_KEY  # locals, which a careless traceback would show
        hits[0] += 1
        raise Leaky(f"could not do it with {token} and {LAVA_KEY} of {args!r} {kwargs!r} {local_key}")

    setattr(owner, name, fail)
    try:
        yield hits
    finally:
        setattr(owner, name, original)


@case("SEC-02")
def test_thirty_exceptions(stand: Stand) -> None:
    from proxy import daemon as server
    from proxy.app import create_app
    from proxy.observe import logs

    folder = stand.folder / "exceptions"
    folder.mkdir(mode=0o700)
    path = folder / "config.toml"
    path.touch(mode=0o600)
    path.write_text(
        f'default_project = "main"\n[server]\nport = 0\nkeys = ["{LOCAL_KEY}"]\n[lava]\nsecret_key = "{LAVA_KEY}"\nbase_url = "{stand.upstream.url}"\n'
        f'[projects.main]\nmeter = "m"\nmetadata = {{ team = "x" }}\n[projects.lab]\nbyok = "client"\n'
        f'[projects.ready]\nforward_token = "{TOKEN}"\n'
        f'[log]\nlevel = "debug"\nformat = "json"\nfile = "{folder / "log"}"\n'
    )
    settings = load(path, {})
    log = logs.configure(settings.log, Redactor(settings.secrets()))
    reached = 0
    try:
        with server.background(settings, create_app=lambda given: create_app(given, log=log)) as running:
            port = int(running.addresses[0].rpartition(":")[2])
            for module, attribute in PLACES:
                assert _owner(module, attribute) is not None, (module, attribute)
                with broken(module, attribute) as hits:
                    try:
                        reached += _ask_everything(stand, port, hits)
                    except TimeoutError:
                        pytest.fail(f"a client was left hanging by a fault in {module}.{attribute}")
                # It recovers at once.
                with Client(port, stand.tape) as client:
                    client.post_json("/v1/chat/completions", CHAT, SENT)
                    response = client.response()
                    assert response.status == 200, (module, attribute, response.body)
    finally:
        log.close()
    assert reached >= 40, reached
    said = (folder / "log").read_text()
    assert "internal error" in said
    assert "Leaky" in said
    clean(said)
    for line in said.splitlines():
        json.loads(line)


def _ask_everything(stand: Stand, port: int, hits: list[int]) -> int:
    """One request of each kind; every answer, or its absence, is told without a secret (the tape is searched later)."""
    with stand.playing(answers(200, b'{"data":[],"usage":{"prompt_tokens":1}}')):
        for method, target, body in (
            ("POST", "/v1/chat/completions", json.dumps({**CHAT, "model": "groq/x"}).encode()),
            ("GET", "/p/main/openai/v1/files", None),
            ("GET", "/v1/models", None),
            ("GET", "/metrics", None),
            ("POST", "/p/lab/openai/v1/chat/completions", b"{}"),
            ("POST", "/p/ready/v1/messages", b"{}"),
        ):
            _ask(stand, port, method, target, body)
    with stand.playing(answers(500, error_body(f"broken {TOKEN}"))):
        _ask(stand, port, "POST", "/v1/chat/completions", b"{}")
    return bool(hits[0])


def _ask(stand: Stand, port: int, method: str, target: str, body: bytes | None) -> None:
    with Client(port, stand.tape) as client:
        client.sock.settimeout(10)
        client.request(method, target, body, {**SENT, "x-lava-metadata": '{"a":"b"}', "Connection": "close"})
        with contextlib.suppress(ConnectionError):
            response = client.response()
            if response.status >= 500 and response.code is not None:
                assert response.code == "internal_error"


@case("SEC-03")
def test_every_error_body(stand: Stand) -> None:
    # The errors of all other cases are searched as well: everything that a client heard is, when its case ends.
    bearer = {"Authorization": f"Bearer {LOCAL_KEY}", "x-api-key": LAVA_KEY, "X-Any": TOKEN, "User-Agent": TOKEN}
    for at in ("plain", "keyed", "byok", "brief"):
        for path in (
            "/v1/chat/completions",
            "/v1/messages",
            "/v1beta/models/gemini-2.5-flash:generateContent",
            f"/{LAVA_KEY}/x",
            f"/p/{TOKEN}/v1/x",
            f"/v1/{LAVA_KEY}?key={LAVA_KEY}",
        ):
            for document in ({"model": f"elevenlabs/{LAVA_KEY}"}, {"model": TOKEN}, CHAT):
                for status in (200, 400, 401, 402, 403, 404, 429, 500):
                    if path.startswith("/v1") or status == 200:
                        heard = error_body(f"wrong: {TOKEN} {LAVA_KEY}", str(status)) if status != 200 else b"{}"
                        with stand.playing(answers(status, heard, [(b"X-Echo", TOKEN.encode())])):
                            stand.post(path, document, {**bearer, "Connection": "close"}, at=at)
    heard = b"".join(stand.tape)
    assert b"lava_unauthorized" in heard
    # A name of the client's own making is its own to see; ours are not in it.
    own = heard.replace(LAVA_KEY.encode(), b"").replace(TOKEN.encode(), b"")
    clean(own)
    stand.tape.clear()


@case("SEC-04")
def test_outputs_of_commands(stand: Stand) -> None:
    folder = stand.folder / "commands"
    folder.mkdir(mode=0o700)
    path, hidden = everything(folder)
    for words in (
        ["--version"],
        ["--help"],
        ["serve", "--help"],
        ["check"],
        ["check", "--json"],
        ["token", "main"],
        ["token", "lab", "openai"],
        ["token", "ready", "--json"],
        ["token", "agent"],
        ["token", "nobody"],
        ["health"],
        ["nonsense"],
    ):
        config = ["--config", str(path)] if words[0] in ("check", "token", "health") else []
        done = run_command([*words, *config], home=folder, env={"LAVA_SECRET_KEY": LAVA_KEY})
        assert done.returncode in (0, 1, 2, 78), (words, done.returncode)
        said = done.stdout + done.stderr
        assert said
        assert b"Traceback" not in said
        clean(said, hidden)
        if words[0] in ("check", "token") and words[-1] != "nobody":
            assert done.returncode == 0, said
    done = run_command(["token", "main", "--reveal", "--config", str(path)], home=folder)
    assert leaks(done.stdout, hidden), "--reveal is for showing it"
    # The daemon's own pages.
    for at, headers in (("plain", {}), ("keyed", {"x-api-key": LOCAL_KEY})):
        stand.post("/v1/chat/completions", headers=headers, at=at)
        for page in ("/metrics", "/healthz", "/readyz", "/", "/status", "/dashboard", "/v1/models", "/no/such/path"):
            response = stand.ask("GET", page, headers={**headers, "Accept": "text/html"}, at=at)
            clean(response.body + str(response.headers).encode())


@case("SEC-05")
def test_process_as_others_see_it(stand: Stand) -> None:
    secret = stand.folder / "lava-key"
    secret.touch(mode=0o600)
    secret.write_text(LAVA_KEY)
    running = stand.start(f'[projects.x]\nsecret_key = "file:{secret}"\n', env={"KEY": made_up("aks_test_", "unused")})
    assert stand.post("/v1/chat/completions", at=running).status == 200
    process = psutil.Process(running.process.pid)
    clean(" ".join(process.cmdline()), (LAVA_KEY, mint_token(LAVA_KEY)))
    clean(process.name())
    if sys.platform == "linux":
        proc = Path(f"/proc/{process.pid}")
        clean((proc / "cmdline").read_bytes(), (LAVA_KEY,))
        clean((proc / "comm").read_bytes(), (LAVA_KEY,))
        with contextlib.suppress(PermissionError):  # not readable at all is better still
            clean((proc / "environ").read_bytes(), (LAVA_KEY,))
        with contextlib.suppress(PermissionError):
            names = " ".join(str(each.readlink()) for each in (proc / "fd").iterdir() if each.is_symlink())
            clean(names, (LAVA_KEY,))
        # Not dumpable: its memory, descriptors and environment belong to root, so not even the same user reads them.
        assert (proc / "environ").stat().st_uid == 0
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert running.stop() == 0


@case("SEC-06")
def test_validation_errors(stand: Stand) -> None:
    folder = stand.folder / "validation"
    folder.mkdir(mode=0o700)
    short = LOCAL_KEY[:12]
    wrong = {
        "too short": f'[server]\nkeys = ["{short}"]\n',
        "same twice": f'[server]\nkeys = ["{LOCAL_KEY}", "{LOCAL_KEY}"]\n',
        "a table": f'[lava]\nsecret_key = {{ value = "{LAVA_KEY}" }}\n',
        "a list": f'[lava]\nsecret_key = ["{LAVA_KEY}"]\n',
        "in the wrong place": f'[server]\nsecret_key = "{LAVA_KEY}"\n',
        "as a number's value": f'[server]\nport = "{LAVA_KEY}"\n',
        "as a list of hosts": f'[server]\nallowed_hosts = "{LAVA_KEY}"\n',
        "as an address": f'[lava]\nbase_url = "https://{LAVA_KEY}@evil/"\n',
        "broken TOML": f'[lava]\nsecret_key = "{LAVA_KEY}\n',
        "as a reference": f'[lava]\nsecret_key = "env:{LAVA_KEY}"\n',
        "as a file": f'[lava]\nsecret_key = "file:/nonexistent/{LAVA_KEY}"\n',
        "beside minting": f'[projects.x]\nforward_token = "{TOKEN}"\nmeter = "m"\n',
        "in metadata": f'[projects.x]\nmetadata = {{ "a b" = "{LAVA_KEY}" }}\n',
        "control characters": f'[lava]\nsecret_key = "{LAVA_KEY}\\u0000"\n',
    }
    for name, text in wrong.items():
        path = folder / "config.toml"
        path.touch(mode=0o600)
        path.write_text(text)
        with pytest.raises(ConfigError) as raised:
            load(path, {})
        error = raised.value
        # A file's name is the user's own word for a place; everything else of it stays unsaid.
        said = "\n".join([str(error), repr(error), str(error.__cause__), str(error.__context__)])
        if name != "as a file":
            assert not leaks(said, (LAVA_KEY, LOCAL_KEY, TOKEN)), name
        if name == "too short":
            assert short not in said
    for variable, value in (
        ("LAVA_PROXY_SERVER__KEYS", f'["{LOCAL_KEY}", '),
        ("LAVA_PROXY_SERVER__KEYS", f'{{"a": "{LOCAL_KEY}"}}'),
        ("LAVA_PROXY_SERVER__PORT", LAVA_KEY),
        ("LAVA_PROXY_PROJECTS", f'{{"x": "{LAVA_KEY}"'),
        ("LAVA_PROXY_LAVA__SECRET_KEYS", LAVA_KEY),
        ("LAVA_PROXY_UPSTREAM__PROXY", f"nonsense://{LAVA_KEY}@x:y"),
    ):
        with pytest.raises(ConfigError) as raised:
            load(None, {variable: value, "HOME": str(folder)})
        clean("\n".join([str(raised.value), repr(raised.value), str(raised.value.__context__)]), (LAVA_KEY, LOCAL_KEY))


@case("SEC-07")
def test_settings_objects(stand: Stand) -> None:
    folder = stand.folder / "objects"
    folder.mkdir(mode=0o700)
    path, hidden = everything(folder)
    settings = load(path, {})
    parts: list[Any] = [settings, settings.server, settings.lava, settings.upstream, *settings.projects.values()]
    parts += [settings.lava.secret_key, settings.server.keys, Redactor(settings.secrets())]
    from proxy.gateway.active_config import ActiveConfig
    from proxy.upstream import create_engine

    config = ActiveConfig(settings, create_engine(settings.upstream))
    parts += [config, config.destination.credential("main", "openai", None), config.table]
    for part in parts:
        for show in (
            repr,
            str,
            format,
            pprint.pformat,
            lambda each: f"{each!r:>5}",
            lambda each: str(getattr(each, "__dict__", "")),
        ):
            clean(_shown(show, part), hidden)
        for dump in ("model_dump", "model_dump_json", "dict", "json", "__getstate__"):
            with contextlib.suppress(Exception):
                clean(str(getattr(part, dump)()), hidden)
        with contextlib.suppress(Exception):
            clean(pickle.dumps(part), hidden)
        with contextlib.suppress(Exception):
            clean(repr(copy.deepcopy(part)), hidden)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            with contextlib.suppress(TypeError):
                shown = dataclasses.asdict(part)
                shown.pop("authorization", None)
                shown.pop("secrets", None)
                clean(str(shown), hidden)
    assert isinstance(settings.lava.secret_key, Secret)
    with pytest.raises(TypeError):
        pickle.dumps(settings.lava.secret_key)


def _shown(show: Callable[[Any], str], part: Any) -> str:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's old names warn
        return str(show(part))


@case("SEC-12")
def test_debug_requests(stand: Stand) -> None:
    asks = {"X-Debug": "1", "Accept": "text/html", "X-Starlette-Debug": "true", "Cookie": "debug=1", "DNT": "1"}
    for path in (
        "/?debug=1",
        "/no/such/path?debug=true",
        "/openai/v1/x?debug=1",
        "/metrics?debug=1",
        "/p/nobody/x",
        "/console",
        "/docs",
    ):
        with stand.playing(answers(400, error_body("no"))):
            response = stand.ask("GET", path, headers=asks)
        said = response.body.decode("utf-8", "replace")
        for sign in ("Traceback", 'File "', ".py", "site-packages", "locals", "starlette", "Starlette"):
            assert sign not in said, (path, sign)
        if response.code is not None:
            assert response.header("content-type") == "application/json"
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        for path in ("/metrics", "/healthz", "/readyz", "/"):
            our_error(stand.ask(method, path, b"", headers=asks), 405, "method_not_allowed")


def _spellings(rng: random.Random) -> list[Callable[[bytes], bytes]]:
    def around(value: bytes) -> bytes:
        return rng.randbytes(rng.randrange(4)) + value + rng.randbytes(rng.randrange(4))

    return [
        lambda value: value,
        lambda value: base64.b64encode(around(value)),
        lambda value: base64.urlsafe_b64encode(around(value)).rstrip(b"="),
        lambda value: value.hex().encode(),
        lambda value: quote(value.decode(), safe="").encode(),
        lambda value: b"".join(b"%%%02X" % byte for byte in value),
        lambda value: base64.b64encode(json.dumps({"secret_key": value.decode(), "meter_slug": "m"}).encode()),
        lambda value: quote(base64.b64encode(around(value)).decode(), safe="").encode(),
        lambda value: json.dumps(value.decode()).encode(),
    ]


@case("SEC-14")
def test_scanner_control(stand: Stand) -> None:
    rng = random.Random(20261123)
    spellings = _spellings(rng)
    found = 0
    for number in range(90):
        value = rng.choice((LAVA_KEY, LOCAL_KEY, PROVIDER_KEY, made_up("aks_test_", str(number))))
        planted = spellings[number % len(spellings)](value.encode())
        hay = rng.randbytes(rng.randrange(2000)) + planted + rng.randbytes(rng.randrange(200))
        found += bool(leaks(hay, [value]))
        assert not leaks(hay, [made_up("aks_live_", f"not planted {number}")])
    assert found == 90
    # A naive search of the token for the key finds nothing, which is why.
    assert LAVA_KEY not in TOKEN
    assert leaks(TOKEN, [LAVA_KEY])


@case("SEC-15")
def test_log_injection(stand: Stand) -> None:
    forged = '{"timestamp":"2026-11-23T00:00:00Z","level":"info","event":"request","status":200,"path":"/forged"}'
    evil = f"x\r\n{forged}\r\n\x1b[31mred\x1b[0m\x1b]0;title\x07\u2028\u2029\x85\x00"
    before = len(stand.daemon().output())
    word = stand.nonce()
    stand.post("/v1/chat/completions", {"model": evil, "messages": []})
    for path in (
        "/no/such/%0d%0a" + quote(forged),
        "/no/such/%1b%5b31mred",
        "/no%0asuch",
        f"/openai/v1/files/%22%7d{quote(forged)}",
        "/p/%0d%0aforged/v1/x",
    ):
        stand.ask("GET", path)
    stand.ask("GET", "/openai/v1/files", headers={"User-Agent": b"\x1b[31m".decode(), "X-Lava-Proxy-Project": forged})
    pairs = [(b"x-lava-request-id", b"\xff\x1b[31mred"), (b"content-type", b"text/event-stream")]
    with stand.playing(
        answers(200, b'event: error\ndata: {"type":"error","error":{"type":"\\n\\u001b[31m"}}\n\n', pairs)
    ):
        stand.ask("GET", f"/openai/v1/{word}")
    stand.line(word)
    new = stand.daemon().output()[before:]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", new)
    for line in new.splitlines():
        event = json.loads(line)
        assert event["timestamp"] != "2026-11-23T00:00:00Z"
        assert event.get("path") != "/forged"


KEY_SHAPED = re.compile(rb"(aks_live_|aks_test_|lava_sk_|lava_wk_|sk-)[A-Za-z0-9_-]{6,}")
MAY_HOLD_KEYS = ("tests/vectors/", "tests/hostile-cases.json")


def _made_by_tools(path: Path) -> bool:
    """Caches and the like, which no repository and no archive has."""
    parts = path.relative_to(ROOT).parts
    return any(part in ("__pycache__", "node_modules") or (part[0] == "." and part != ".ci") for part in parts[:-1])


@case("SEC-16")
def test_artefacts(stand: Stand) -> None:
    files = [
        path
        for folder in ("proxy", "tests", "docs", "benchmarks", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not _made_by_tools(path)
    ]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    assert len(files) > 50
    found = []
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(MAY_HOLD_KEYS):
            content = path.read_bytes()
            found += [f"{name}, line {content[: hit.start()].count(10) + 1}" for hit in KEY_SHAPED.finditer(content)]
    assert not found, found
    assert KEY_SHAPED.search(LAVA_KEY.encode())
    # The archives that users install: built here, every member searched.
    folder = stand.folder / "artefacts"
    folder.mkdir()
    for kind in ("wheel", "sdist"):
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    members = dict(_members(folder))
    assert len(members) > 50
    leaking = [
        name
        for name, content in members.items()
        if KEY_SHAPED.search(content) and not any(each in name for each in MAY_HOLD_KEYS)
    ]
    assert not leaking, leaking


def _members(folder: Path) -> Iterator[tuple[str, bytes]]:
    import tarfile
    import zipfile

    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                yield f"{wheel.name}/{name}", archive.read(name)
    for sdist in folder.glob("*.tar.gz"):
        with tarfile.open(sdist) as tar:
            for member in tar.getmembers():
                content = tar.extractfile(member)
                if content is not None:
                    yield f"{sdist.name}/{member.name}", content.read()


# --- beyond the list -------------------------------------------------------------------------------------------------


def test_echoes_in_odd_places(stand: Stand) -> None:
    """A non-2xx that echoes the credential escaped, split over headers, or in a long chunked body is masked there too."""
    escaped = "".join(f"\\u{ord(char):04x}" for char in LAVA_KEY)
    for body in (
        b'{"error":{"message":"' + escaped.encode() + b'","type":"x","param":null}}',
        b"<html>" + quote(TOKEN, safe="").encode() + b"</html>",
        b"<html>" + quote(LAVA_KEY).replace("_", "%5F").encode() + b"</html>",
        json.dumps(
            {"error": {"message": "x", "type": "x", "param": None, "headers": {"authorization": f"Bearer {TOKEN}"}}}
        ).encode(),
    ):
        for status in (400, 404, 500):
            with stand.playing(
                answers(status, body, [(b"WWW-Authenticate", b'Bearer realm="' + TOKEN.encode() + b'"')])
            ):
                response = stand.post("/v1/chat/completions")
            assert response.status == status
            assert len(response.body) == len(body)
            assert response.body != body
            clean(response.body + str(response.headers).encode())


def test_echoes_that_cannot_be_read(stand: Stand) -> None:
    """A compressed error that is broken, too long, or no such thing at all gives no echo away: neither raw nor decoded."""
    plain = b'{"error":{"message":"you sent %b","type":"x","param":null}}' % TOKEN.encode()
    noise = random.Random(3).randbytes(1000)
    codings: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
        "gzip": (gzip.compress, lambda raw: zlib.decompressobj(31).decompress(raw)),
        "deflate": (zlib.compress, lambda raw: zlib.decompressobj().decompress(raw)),
        "br": (brotli.compress, lambda raw: bytes(brotli.Decompressor().process(raw))),
        "zstd": (zstandard.compress, lambda raw: zstandard.ZstdDecompressor().decompressobj().decompress(raw)),
    }
    for name, (compress, decode) in codings.items():
        packed = compress(plain + noise)
        three = f"{name}, {name}, {name}"
        for label, body in (
            (name, compress(plain + bytes(3_000_000))),
            (name, compress(plain + random.Random(4).randbytes(400_000))),
            (name, packed[:-300]),
            (name, packed + b"more"),
            (name, packed[:-20] + bytes(20)),
            (three, compress(compress(compress(plain)))),
            (name, plain),
            (name.upper(), packed[:-300]),
        ):
            for status in (400, 403, 429, 500):
                with stand.playing(answers(status, body, [(b"Content-Encoding", label.encode())])):
                    response = stand.post("/v1/chat/completions")
                said = response.body
                clean(said + str(response.headers).encode())
                with contextlib.suppress(zlib.error, brotli.error, zstandard.ZstdError):
                    for _ in range(label.count(",") + 1):
                        said = decode(said)
                        clean(said)
                if response.status != status:
                    our_error(response, 502, "upstream_protocol")
    for label in ("utf-8", "compress", "gzip"):
        for body in (plain, b"x" * 262_100 + plain + b"y" * 1000):
            with stand.playing(answers(404, body, [(b"Content-Encoding", label.encode())])):
                response = stand.post("/v1/chat/completions")
            assert response.status == 404
            assert response.body == body.replace(TOKEN.encode(), b"*" * len(TOKEN))


def test_echoes_beside_a_body(stand: Stand) -> None:
    """The headers of every answer that is no 2xx are masked, their names as well, whether a body follows or not."""
    key = LAVA_KEY.encode()
    fields = [(b"X-Sent", TOKEN.encode()), (b"X-Hex", key.hex().encode()), (b"X-" + key.hex().encode(), b"1")]
    for status in (304, 400, 401, 402, 403, 404, 429, 500, 503):
        for method in ("POST", "HEAD"):
            with stand.playing(answers(status, b"", fields)):
                response = stand.ask(method, "/openai/v1/files", b"{}")
            assert response.status == status
            clean(str(response.headers).encode())
    # The list of models asks Lava with the bare key, and keeps what tells a tool when to come back.
    fields = [(b"Retry-After", key), (b"X-Lava-Request-Id", key), (b"X-RateLimit-Reset", key.hex().encode())]
    for status in (401, 402, 403, 429, 500):
        with stand.playing(answers(status, error_body("no", str(status)), fields)):
            response = stand.ask("GET", "/v1/models")
        assert response.status == status
        clean(response.body + str(response.headers).encode())


def test_slow_leaks(stand: Stand) -> None:
    """An error answer that drips its echo byte by byte, or is endless, is masked as it passes."""
    body = b"x" * 262_100 + b" " + TOKEN.encode() + b" " + b"y" * 1000

    def play(peer: Any, received: Any) -> bool:
        peer.body(received)
        peer.send(b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n")
        for start, end in ((0, 262_120), (262_120, 262_150), (262_150, len(body))):
            peer.send(b"%x\r\n%b\r\n" % (end - start, body[start:end]))
            time.sleep(0.02)
        peer.send(b"0\r\n\r\n")
        return False

    with stand.playing(play):
        response = stand.post("/v1/chat/completions")
    assert response.body == body.replace(TOKEN.encode(), b"*" * len(TOKEN))


def test_concurrent_projects_do_not_mix(stand: Stand) -> None:
    """Requests of two projects in one burst each carry their own credential, on whichever connection they travel."""
    from security_stand import KEY_A, KEY_B

    expected = {KEY_A: mint_token(LAVA_KEY, meter_slug="meter-a"), KEY_B: mint_token(LAVA_KEY, meter_slug="meter-b")}
    before = len(stand.upstream.requests)
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        key = (KEY_A, KEY_B)[number % 2]
        with stand.client("keyed") as client:
            barrier.wait(10)
            for turn in range(25):
                client.post_json("/v1/chat/completions", {**CHAT, "user": f"{key[-6:]} {turn}"}, {"x-api-key": key})
                assert client.response().status == 200

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    requests = stand.upstream.requests[before:]
    assert len(requests) == 200
    for received in requests:
        tail = json.loads(received.body)["user"].split()[0]
        key = KEY_A if KEY_A.endswith(tail) else KEY_B
        assert received.header(b"authorization") == f"Bearer {expected[key]}".encode()
    until(lambda: stand.ask("GET", "/healthz", at="keyed").status == 200)
