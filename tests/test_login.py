"""``lava-proxy login``, ``logout`` and ``whoami``, against the emulator's login pages: with plain HTTP as the browser, and with
a real one."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from chromium import Chromium, chromium
from daemons import clean_environment
from rawclient import ask
from test_cli import Ran, command, lava_proxy

from proxy.cli import login
from proxy.cli.browser import opened
from proxy.cli.callback import Callback, LoginError, user_of
from proxy.config import credentials
from proxy.config.credentials import Login
from proxy.config.references import UnreadableReference
from proxy.config.settings import load
from proxy.emulator import Emulator, World
from proxy.protocol.redaction import Secret, leaks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from daemons import StartDaemon

KEY = "aks_live_" + "l0gin" * 5

#: A keyring as good as a real one, for programs under test: they are told of it by PYTHON_KEYRING_BACKEND.
KEYRING = """
import json, os
from keyring.backend import KeyringBackend

class Keyring(KeyringBackend):
    priority = 5
    place = os.path.join(os.environ["HOME"], "keyring.json")

    def _all(self):
        try:
            with open(self.place) as file:
                return json.load(file)
        except FileNotFoundError:
            return {}

    def _write(self, found):
        with open(self.place, "w") as file:
            json.dump(found, file)

    def get_password(self, service, user):
        return self._all().get(f"{service}/{user}")

    def set_password(self, service, user, password):
        self._write({**self._all(), f"{service}/{user}": password})

    def delete_password(self, service, user):
        found = self._all()
        del found[f"{service}/{user}"]
        self._write(found)
"""
NO_KEYRING = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}


def get(url: str, method: str = "GET", body: str | None = None) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of one request, redirects not followed: what a browser sees."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    try:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body is not None else {}
        connection.request(method, f"{where.path}?{where.query}" if where.query else where.path, body, headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    finally:
        connection.close()


def allow(url: str) -> str:
    """Go through the login page as a person does; the address that the browser is sent back to."""
    status, _, page = get(url)
    assert status == 200, page
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
    status, headers, page = get(url.partition("?")[0], "POST", urlencode(fields))
    assert status == 303, page
    return headers["location"]


class Running:
    """A ``lava-proxy login`` that waits for the browser."""

    def __init__(self, home: Path, *words: str, env: Mapping[str, str] | None = None, umask: int = -1) -> None:
        self.home = home
        self.process = subprocess.Popen(
            command("login", *words),
            env=clean_environment(home, {**NO_KEYRING, **(env or {})}),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=umask,
            text=True,
        )
        self.seen = ""

    def url(self) -> str:
        """The address that it prints."""
        assert self.process.stdout is not None
        while not (found := re.search(r"http\S+port=\d+", self.seen)):
            line = self.process.stdout.readline()
            assert line, self.seen
            self.seen += line
        return found[0]

    def end(self) -> Ran:
        """What it said, to its end."""
        assert self.process.stdout is not None
        with self.process.stdout as stream:  # not communicate(), which does not know what readline() read ahead
            out = stream.read()
        ran = Ran(self.process.wait(30), self.seen + out, "")
        assert "Traceback" not in ran.out, ran
        return ran


@pytest.fixture
def app(emulator: Emulator) -> str:
    """The emulator's address as Lava's site."""
    return emulator.base_url.rstrip("/").removesuffix("/v1")


def stored(home: Path) -> Path:
    return home / ".config" / "lava-proxy" / "credentials.json"


def in_home(home: Path) -> dict[str, str]:
    return {"HOME": str(home)}


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["connect", "cli"])
def test_login_then_everything_finds_the_key(tmp_path: Path, emulator: Emulator, app: str, page: str) -> None:
    """By the page of either generation: logged in, kept for the user alone whatever the umask, found by the other commands,
    and no key is printed."""
    running = Running(tmp_path, "--app", app, "--page", page, "--no-browser", umask=0)
    url = running.url()
    assert urlsplit(url).path == f"/auth/{page}"
    assert re.fullmatch("[0-9a-f]{32}", parse_qs(urlsplit(url).query)["state"][0])
    status, headers, text = get(allow(url))
    assert status == 200, text
    assert "close this tab" in text
    assert headers["cache-control"] == "no-store"
    ran = running.end()
    assert ran.code == 0, ran
    keys = [*emulator.world.key_values()]
    assert not leaks(ran.out, keys)
    assert "mer_demo" in ran.out

    file = stored(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for folder in (file.parent, file.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kept = json.loads(file.read_text())
    assert kept["secret_key"] == emulator.world.secret_key_records[-1].key
    assert ("wallet_key" in kept) == (page == "cli")
    assert ("account_id" in kept) == (page == "connect")

    who = lava_proxy(tmp_path, "whoami", "--json")
    assert (who.code, who.json["in_use"], who.json["kept"]) == (0, True, "file")
    assert who.json["base_url"] == f"{app}/v1"
    assert not leaks(who.out + lava_proxy(tmp_path, "whoami").out, keys)
    wallet = lava_proxy(tmp_path, "wallet", "--json")
    assert wallet.json == {"wallet_id": "wal_demo", "balance": "20.00"}
    assert "secret key aks_live_" in lava_proxy(tmp_path, "check").out
    assert lava_proxy(tmp_path, "token", "default").code == 0


def test_the_daemon_finds_it_without_configuration(
    emulator: Emulator, app: str, daemon: StartDaemon, tmp_path: Path
) -> None:
    """``serve`` is ready and forwards to the Lava of the login, with nothing configured and no variable set."""
    code = code_of(app)
    home = tmp_path / "daemon-0"  # the home of the first daemon that the fixture starts
    home.mkdir(mode=0o700)
    assert lava_proxy(home, "login", "--app", app, "--code", code, env=NO_KEYRING).code == 0
    key = emulator.world.secret_key_records[-1].key
    found = load(None, in_home(home)).lava
    assert found.secret_key == Secret(key)
    home.rename(tmp_path / "kept")
    running = daemon(env=in_home(tmp_path / "kept"), secrets=[key], ready="/readyz")
    body = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}'
    came = ask(running.port, "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    assert came.status == 200, came.body
    assert emulator.world.received[-1].status == 200


def code_of(app: str) -> str:
    """A code as the browser would bring it back."""
    back = allow(f"{app}/auth/connect?state=aa&port=1")
    return parse_qs(urlsplit(back).query)["code"][0]


def test_a_browser_is_opened_where_there_is_one(tmp_path: Path, app: str) -> None:
    """With a display and ``xdg-open`` the address is opened, and nobody has to copy it."""
    opener = tmp_path / "bin" / "xdg-open"
    opener.parent.mkdir()
    opener.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    opener.chmod(0o755)
    running = Running(
        tmp_path, "--app", app, env={"DISPLAY": ":9", "PATH": f"{opener.parent}{os.pathsep}{os.environ['PATH']}"}
    )
    url = running.url()
    assert "A browser opens" in running.seen
    start = (tmp_path / "opened").read_text()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", start)  # all that other users see in the process list
    status, headers, _ = get(start)
    assert (status, headers["location"]) == (302, url)
    assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "no-referrer")
    get(allow(url))
    assert running.end().code == 0


@pytest.mark.parametrize("env", [{}, {"DISPLAY": ":9", "PATH": "/nonexistent"}])
def test_without_a_browser_the_address_is_printed(tmp_path: Path, app: str, env: dict[str, str]) -> None:
    """No display, or nothing that could open one: the address is there, and works."""
    running = Running(tmp_path, "--app", app, env=env)
    url = running.url()
    assert "Open this address" in running.seen
    get(allow(url))
    ran = running.end()
    assert ran.code == 0
    assert f"\n  lava-proxy login --app {app} --code -\n" in ran.out  # for a browser elsewhere, to copy


@pytest.mark.parametrize(
    ("choice", "opens"),
    [
        ("one", ["URL"]),
        ("one -w %s -x", ["-w", "URL", "-x"]),
        ("one --at=%s", ["--at=URL"]),
        ("missing:broken:'unbalanced:one", ["URL"]),
        (":'a place/one' --new", ["--new", "URL"]),
        ("a place/one", ["URL"]),
        ("broken", None),
        ("", None),
    ],
)
def test_the_users_own_choice_of_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, opens: list[str] | None
) -> None:
    """``$BROWSER``: commands in order of preference, with ``%s`` for the address or the address behind; by no shell. It needs
    no display. Where none of them works, nothing was opened."""
    for name, code in (("one", 0), ("a place/one", 0), ("broken", 3)):
        script = tmp_path / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/opened\nexit {code}\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("BROWSER", choice)
    url = "https://lava.example/auth?a=$(id)&b='x'"
    assert opened(url) == (opens is not None)
    if opens is not None:
        assert (tmp_path / "opened").read_text().splitlines() == [word.replace("URL", url) for word in opens]


@pytest.mark.parametrize("form", ["code", "address", "stdin"])
def test_a_pasted_code(tmp_path: Path, emulator: Emulator, app: str, form: str) -> None:
    """What a browser on another computer ended at can be given: the code, or its whole address, or by standard input."""
    code = code_of(app)
    given = f"http://127.0.0.1:4711/callback?code={code}&state=aa" if form != "code" else code
    done = subprocess.run(
        command("login", "--app", app, "--json", "--code", "-" if form == "stdin" else given),
        env=clean_environment(tmp_path, NO_KEYRING),
        input=given + "\n" if form == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["ok"], said["kept"], said["in_use"]) == (True, "file", True)
    assert not leaks(done.stdout + done.stderr, [*emulator.world.key_values()])


# --- a real browser --------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with chromium(tmp_path / "browser") as found:
        yield found


def opening(home: Path, app: str, page: str, browser: Chromium, by: str) -> Running:
    """A login that opens the browser by itself, through ``by``; the browser stands at the page then."""
    places = {"DISPLAY": ":none", "PATH": f"{browser.opener.parent}{os.pathsep}{os.environ['PATH']}"}
    env = places if by == "xdg-open" else {"BROWSER": str(browser.opener)}
    running = Running(home, "--app", app, "--page", page, env=env)
    url = running.url()
    assert "A browser opens" in running.seen
    browser.attach()
    assert browser.reads("Allow access?", "h1")
    assert browser.address == url
    return running


@pytest.mark.browser
@pytest.mark.timeout(120)  # a browser's first start on a busy machine
@pytest.mark.parametrize(("page", "by"), [("connect", "xdg-open"), ("cli", "BROWSER")])
def test_a_real_browser(tmp_path: Path, emulator: Emulator, app: str, browser: Chromium, page: str, by: str) -> None:
    """From the browser that the command opens, by one click on "Allow", to the stored key; the person ends at a page that says
    so, and neither it nor the terminal shows a key."""
    running = opening(tmp_path, app, page, browser, by)
    browser.click("Allow")
    assert browser.reads("You can close this tab", "h1")
    assert browser.reads("lava-proxy has its answer. Go back to the terminal.")
    assert browser.title == "You can close this tab"
    assert urlsplit(browser.address).hostname == "127.0.0.1"
    assert browser.picture().startswith(b"\x89PNG")
    ran = running.end()
    assert (ran.code, "Logged in." in ran.out) == (0, True), ran
    key = emulator.world.secret_key_records[-1].key
    assert json.loads(stored(tmp_path).read_text())["secret_key"] == key
    assert not leaks(ran.out, [*emulator.world.key_values()])
    assert lava_proxy(tmp_path, "wallet", "--json").json["balance"] == "20.00"


@pytest.mark.browser
@pytest.mark.timeout(120)  # a browser's first start on a busy machine
@pytest.mark.parametrize("page", ["connect", "cli"])
def test_a_refusal_in_a_real_browser(
    tmp_path: Path, emulator: Emulator, app: str, browser: Chromium, page: str
) -> None:
    """A click on "Deny" ends the login at once: told on the page and in the terminal, exit code 1, no key made or kept."""
    before = [*emulator.world.key_values()]
    running = opening(tmp_path, app, page, browser, "BROWSER")
    browser.click("Deny")
    assert browser.reads("The login failed", "h1")
    assert browser.reads("Access was refused. Go back to the terminal.")
    assert browser.picture().startswith(b"\x89PNG")
    ran = running.end()
    assert ran.code == 1, ran
    assert ran.out.endswith("lava-proxy: not logged in: access was refused in the browser.\n")
    assert not stored(tmp_path).exists()
    assert [*emulator.world.key_values()] == before


# --- what goes wrong -------------------------------------------------------------------------------------------------


def failing(home: Path, *words: str, env: Mapping[str, str] | None = None) -> str:
    """A login that fails: exit code 1, one sentence, nothing kept."""
    ran = lava_proxy(home, "login", *words, env={**NO_KEYRING, **(env or {})})
    assert ran.code == 1, ran
    assert ran.err.startswith("lava-proxy: not logged in: ")
    assert len(ran.err.strip().splitlines()) == 1
    assert not stored(home).exists()
    return ran.err


def test_a_code_given_twice(tmp_path: Path, app: str) -> None:
    """A code works once; the second time Lava's reason is told, and what to do."""
    code = code_of(app)
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert lava_proxy(first, "login", "--app", app, "--code", code, env=NO_KEYRING).code == 0
    said = failing(second, "--app", app, "--code", code)
    assert "used already" in said
    assert "60 seconds" in said
    assert code not in said


def test_a_code_too_late(tmp_path: Path, emulator: Emulator, app: str) -> None:
    """After 60 seconds a code is dead."""
    code = code_of(app)
    emulator.world.clock = lambda: time.time() + 61
    assert "expired" in failing(tmp_path, "--app", app, "--code", code)


def test_no_answer_at_the_exchange(tmp_path: Path, free_port: int) -> None:
    """A closed port at Lava's side is a sentence."""
    assert "Connection refused" in failing(tmp_path, "--app", f"http://127.0.0.1:{free_port}", "--code", "abc")


@pytest.mark.parametrize("fault", ["html-502", "lava-500", "lava-429", "no-answer"])
def test_lava_out_of_order(tmp_path: Path, fault: str) -> None:
    """Whatever answers the exchange (a page of HTML, too): a sentence."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if fault == "no-answer":
                return
            status, kind, body = {
                "html-502": (200, "text/html", b"<html>Sign in to the hotel's network</html>"),
                "lava-500": (500, "application/json", b'{"error": {"message": "boom"}}'),
                "lava-429": (429, "application/json", b'{"error": {"message": "slow down"}}'),
            }[fault]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Retry-After", "60")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            said = failing(tmp_path, "--app", f"http://127.0.0.1:{server.server_address[1]}", "--code", "abc")
        finally:
            server.shutdown()
            thread.join()
    wanted = {"html-502": "a web page", "lava-500": "boom", "lava-429": "60 seconds", "no-answer": "cannot be reached"}
    assert wanted[fault] in said


@pytest.mark.parametrize("app", ["http://www.lava.so", "ftp://x", "not an address", "https://user@lava.so"])
def test_an_app_that_cannot_be_one(tmp_path: Path, app: str) -> None:
    """Plain http is for this machine alone; exit code 2."""
    ran = lava_proxy(tmp_path, "login", "--app", app)
    assert ran.code == 2
    assert "--app" in ran.err


def test_no_code_in_what_was_pasted(tmp_path: Path, app: str) -> None:
    """An address without a code, with two, or nothing at all."""
    assert "contains no code" in failing(tmp_path, "--app", app, "--code", "http://127.0.0.1:1/callback?state=a")
    assert "two codes" in failing(tmp_path, "--app", app, "--code", "http://127.0.0.1:1/callback?code=a&code=b")
    assert "no code was given" in failing(tmp_path, "--app", app, "--code", "-")


def test_a_browser_that_does_not_return(
    tmp_path: Path, app: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the limit the login ends by itself, its port closed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert login.run(None, app=app, browser=False, limit=0.2) == 1
    said = capsys.readouterr()
    assert "the browser did not return within 0.2 seconds" in said.err
    port = re.search(r"port=(\d+)", said.out)
    assert port is not None
    with pytest.raises(ConnectionRefusedError):
        get(f"http://127.0.0.1:{port[1]}/callback")
    assert login.LIMIT_S == 120.0


def waiting() -> Callback:
    """A callback that waits for the state ``right``."""
    return Callback("right", lambda port: f"https://lava.example/auth/connect?state=right&port={port}")


# --- the callback ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("state=right", "no code"),
        ("code=&state=right", "no code"),
        ("error=access_denied&state=right", "refused in the browser"),
        ("error=server_error&state=right", "no code"),
        ("code=a&code=b&state=right", "two codes"),
    ],
)
def test_a_wrong_answer_ends_the_login(query: str, reason: str) -> None:
    """400, and the whole login has failed: what comes later, though right, is too late."""
    with waiting() as callback:
        base = f"http://127.0.0.1:{callback.port}/callback"
        assert get(f"{base}?{query}")[0] == 400
        assert get(f"{base}?code=abc&state=right")[0] == 400
        with pytest.raises(LoginError, match=reason):
            callback.wait(5)


@pytest.mark.parametrize(
    "query",
    [
        "code=abc&state=wrong",
        "code=abc&state=",
        "code=abc",
        "",
        "code=abc&state=right&state=right",
        "code=abc&state=right&state=wrong",
        "error=access_denied&state=wrong",
        "error=access_denied",
        "state=%C3%A9%FF&code=abc",
        "state=RIGHT&code=abc",
    ],
)
def test_a_wrong_state_changes_nothing(query: str) -> None:
    """Any page can ask for this address: 400, and the login goes on waiting for its own answer."""
    with waiting() as callback:
        base = f"http://127.0.0.1:{callback.port}/callback"
        for _ in range(3):
            status, _, page = get(f"{base}?{query}")
            assert (status, "belongs to another login" in page) == (400, True)
        assert get(f"{base}?code=good&state=right")[0] == 200
        assert callback.wait(5) == "good"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 302),
        ({"Sec-Fetch-Site": "none"}, 302),
        ({"Sec-Fetch-Site": "same-origin"}, 302),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
    ],
)
def test_no_page_can_begin_a_login(headers: dict[str, str], status: int) -> None:
    """The address that the browser is started with leads a person on to Lava, and no web page."""
    with waiting() as callback:
        answer = ask(callback.port, "GET", "/", None, headers, host=headers.pop("Host", None))
        assert answer.status == status
        assert answer.header("location") == (callback.page if status == 302 else None)
        assert "state=right" not in answer.body.decode()


def test_without_a_browser_nothing_leads_to_lava() -> None:
    """Where none is started, nobody needs the address that leads on."""
    with Callback("right", lambda port: f"https://lava.example/?state=right&port={port}", leads=False) as callback:
        assert get(callback.start)[0] == 404


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says whose a connection is")
def test_another_user_does_not_learn_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address stands in the process list; whoever asks for it there must be the user who logs in."""
    with waiting() as callback, socket.create_connection(("127.0.0.1", callback.port)) as mine:
        assert user_of(mine.getsockname(), mine.getpeername()) == os.geteuid()
        assert user_of(("127.0.0.1", 1), mine.getpeername()) is None
        assert get(callback.start)[0] == 302
        monkeypatch.setattr("proxy.cli.callback._trusted_users", lambda: {os.geteuid() + 1})
        status, headers, page = get(callback.start)
        assert (status, "location" in headers, "another user" in page) == (403, False, True)


def test_what_is_no_answer_does_not_end_it() -> None:
    """Another method is 405, another path 404; neither counts, nor does a visitor who says nothing or nonsense."""
    with waiting() as callback, socket.create_connection(("127.0.0.1", callback.port)):
        base = f"http://127.0.0.1:{callback.port}"
        for method in ("POST", "HEAD", "PUT", "OPTIONS", "DELETE", "NONSENSE"):
            status, headers, _ = get(f"{base}/callback?code=abc&state=right", method)
            assert (status, headers["allow"]) == (405, "GET"), method
        assert get(f"{base}/callback?code=abc&state=right", "POST", "x" * 1000)[0] == 405
        for path in ("/start", "/favicon.ico", "/callback/", "/Callback?code=abc&state=right"):
            assert get(base + path)[0] == 404, path
        with socket.create_connection(("127.0.0.1", callback.port)) as raw:
            raw.sendall(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
            raw.recv(1000)
        assert get(f"{base}/callback?code=abc&state=right")[0] == 200
        assert callback.wait(5) == "abc"


def test_the_callback_listens_on_loopback_only_and_closes() -> None:
    """127.0.0.1, a port of the system's choice; closed as soon as the login is over."""
    with waiting() as callback:
        assert callback._server.server_address[0] == "127.0.0.1"
        port = callback.port
    with pytest.raises(ConnectionRefusedError):
        get(f"http://127.0.0.1:{port}/callback")


@pytest.mark.parametrize(
    ("app", "api"),
    [
        ("https://www.lava.so", "https://api.lavapayments.com/v1"),
        ("https://www.lava.so/", "https://api.lavapayments.com/v1"),
        ("https://sandbox.lava.so", "https://sandbox-api.lavapayments.com/v1"),
        ("http://localhost:3000", "http://localhost:3000/v1"),
        ("http://127.0.0.1:3000/", "http://127.0.0.1:3000/v1"),
    ],
)
def test_the_api_follows_from_the_app(app: str, api: str) -> None:
    """As in the SDK: its own for this machine, the sandbox for a host called so, else production."""
    assert login.places(app)[1] == api
    assert not login.places(app)[0].endswith("/")


# --- keeping ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def keyring_env(tmp_path: Path) -> dict[str, str]:
    """An environment that has a keyring."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "ring_for_tests.py").write_text(KEYRING)
    path = clean_environment(tmp_path)["PYTHONPATH"]
    return {"PYTHONPATH": f"{path}{os.pathsep}{folder}", "PYTHON_KEYRING_BACKEND": "ring_for_tests.Keyring"}


def test_the_keyring_where_there_is_one(
    tmp_path: Path, emulator: Emulator, app: str, keyring_env: dict[str, str]
) -> None:
    """The keys are in the keyring and in no file; each login replaces the one before, logout leaves nothing."""
    for _ in range(2):
        ran = lava_proxy(tmp_path, "login", "--app", app, "--code", code_of(app), env=keyring_env)
        assert ran.code == 0, ran
        assert "keyring" in ran.out
    key = emulator.world.secret_key_records[-1].key
    assert not leaks(stored(tmp_path).read_text(), [*emulator.world.key_values()])
    ring = json.loads((tmp_path / "keyring.json").read_text())
    assert [json.loads(value)["secret_key"] for value in ring.values()] == [key]
    assert lava_proxy(tmp_path, "wallet", env=keyring_env).code == 0
    assert lava_proxy(tmp_path, "whoami", "--json", env=keyring_env).json["kept"] == "keyring"

    # Without that keyring (a service without a desktop, say) it is a sentence.
    without = lava_proxy(tmp_path, "whoami", env=NO_KEYRING)
    assert without.code == 1
    assert "keyring" in without.err
    assert "the login is not used" in lava_proxy(tmp_path, "check", env=NO_KEYRING).out

    assert lava_proxy(tmp_path, "logout", env=keyring_env).code == 0
    assert json.loads((tmp_path / "keyring.json").read_text()) == {}
    assert not stored(tmp_path).exists()


def test_no_keyring_wanted(tmp_path: Path, app: str, keyring_env: dict[str, str]) -> None:
    """``--no-keyring`` keeps the file, for a daemon that has no desktop."""
    words = ("login", "--app", app, "--no-keyring", "--code", code_of(app))
    assert lava_proxy(tmp_path, *words, env=keyring_env).code == 0
    assert not (tmp_path / "keyring.json").exists()
    assert lava_proxy(tmp_path, "whoami", env=NO_KEYRING).code == 0


def test_logout(tmp_path: Path, emulator: Emulator, app: str) -> None:
    """It forgets, and says that the key itself lives on; ``--revoke`` ends that, too. Twice is no fault."""
    for revoke in (False, True):
        assert lava_proxy(tmp_path, "login", "--app", app, "--code", code_of(app), env=NO_KEYRING).code == 0
        record = emulator.world.secret_key_records[-1]
        ran = lava_proxy(tmp_path, "logout", *(["--revoke"] if revoke else []))
        assert ran.code == 0, ran
        assert (record.key in emulator.world.revoked_keys) == revoke
        assert (record.key_id in ran.out) == (not revoke)
        assert not stored(tmp_path).exists()
    assert lava_proxy(tmp_path, "logout", "--json").json["was_logged_in"] is False
    assert lava_proxy(tmp_path, "logout", "--revoke").code == 1


def test_whoami_without_a_login(tmp_path: Path) -> None:
    """Exit code 1 and what to do."""
    ran = lava_proxy(tmp_path, "whoami")
    assert (ran.code, ran.out) == (1, "")
    assert "lava-proxy login" in ran.err
    assert lava_proxy(tmp_path, "whoami", "--json").json["code"] == "not_logged_in"


def test_what_goes_before_a_login(tmp_path: Path) -> None:
    """The configuration first, then LAVA_SECRET_KEY, then the login; ``whoami`` says so."""
    kept = credentials.keep(Login(Secret(KEY), "https://api.example.com/v1"), in_home(tmp_path), keyring=False)
    assert (kept.where, kept.path) == ("file", stored(tmp_path))
    found = load(None, in_home(tmp_path)).lava
    assert (found.secret_key, found.base_url) == (Secret(KEY), "https://api.example.com/v1")
    other = "aks_test_" + "0ther" * 4
    found = load(None, {**in_home(tmp_path), "LAVA_SECRET_KEY": other}).lava
    assert (found.secret_key, found.base_url) == (Secret(other), "auto")
    named = load(None, {**in_home(tmp_path), "LAVA_PROXY_LAVA__BASE_URL": "https://lava.example.com"}).lava
    assert (named.secret_key, named.base_url) == (Secret(KEY), "https://lava.example.com/v1")
    ran = lava_proxy(tmp_path, "whoami", env={"LAVA_SECRET_KEY": other})
    assert ran.code == 0
    assert "LAVA_SECRET_KEY is set" in ran.err
    config = tmp_path / "own.toml"
    config.write_text(f'[lava]\nsecret_key = "{other}"\n')
    config.chmod(0o600)
    assert "another key under [lava]" in lava_proxy(tmp_path, "whoami", "--config", config).err
    assert lava_proxy(tmp_path, "whoami", "--json", "--config", tmp_path / "missing.toml").json["in_use"] is None


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("{}", 0o600, "holds no login"),
        ("[]", 0o600, "holds no login"),
        ("nonsense", 0o600, "is not JSON"),
        ("", 0o600, "is not JSON"),
        ('{"secret_key": "a\\nb"}', 0o600, "holds no login"),
        ('{"secret_key": "KEY", "base_url": "http://evil.example.com"}', 0o600, "no address"),
        ('{"secret_key": "KEY", "base_url": 5}', 0o600, "no address"),
        ('{"kept": "keyring"}', 0o600, "does not say where"),
        ('{"secret_key": "KEY"}', 0o644, "chmod 600"),
        ('{"secret_key": "KEY"}', 0o602, "chmod 600"),
    ],
)
def test_a_file_that_cannot_be_trusted(tmp_path: Path, text: str, mode: int, reason: str) -> None:
    """It is not used, and the daemon starts with a warning; logout removes it all the same."""
    file = stored(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_text(text.replace("KEY", KEY))
    file.chmod(mode)
    with pytest.raises(UnreadableReference, match=reason) as caught:
        credentials.find(in_home(tmp_path))
    assert not leaks(str(caught.value), [KEY])
    settings = load(None, in_home(tmp_path))
    assert settings.lava.secret_key is None
    assert any(reason in warning for warning in settings.warnings)
    assert credentials.forget(in_home(tmp_path))
    assert credentials.find(in_home(tmp_path)) is None


def test_no_place_for_a_login(tmp_path: Path) -> None:
    """A folder that cannot be written, or no home: a sentence, and nothing is left half done."""
    (tmp_path / ".config").write_text("in the way")
    said = failing_at_the_end(tmp_path)
    assert "credentials.json" in said or ".config" in said
    with pytest.raises(UnreadableReference, match="no home"):
        credentials.keep(Login(Secret(KEY)), {}, keyring=False)
    assert credentials.find({}) is None
    assert not credentials.forget({})


def failing_at_the_end(home: Path) -> str:
    """A login that everything is right with but the place."""
    with Emulator(World.demo()) as running:
        app = running.base_url.rstrip("/").removesuffix("/v1")
        ran = lava_proxy(home, "login", "--app", app, "--code", code_of(app), env=NO_KEYRING)
    assert ran.code == 1, ran
    assert len(ran.err.strip().splitlines()) == 1
    return ran.err


def test_a_login_is_shown_nowhere(tmp_path: Path) -> None:
    """No repr of it holds a key."""
    made = Login(Secret(KEY), wallet_key=Secret("lava_wk_" + "x" * 20))
    assert not leaks(repr(made) + str(made), [KEY])
