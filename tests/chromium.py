"""A person at a browser: Chromium without a window, opened by the program under test, and ChromeDriver (W3C WebDriver, plain
HTTP) for the eyes and the hand. A click is a real one: it goes to whatever lies at that place of the page."""

from __future__ import annotations

import base64
import contextlib
import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import httpx2
import psutil
import pytest
from ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Milliseconds that ChromeDriver waits for what a test looks for.
_PATIENCE_MS = 20_000

#: A page is all that is wanted of it: no window, no services of its maker, no state of another run.
_FLAGS = (
    "--headless",
    "--no-sandbox",  # it cannot have one as root, nor in most containers; it sees pages of this test alone
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Chromium:
    """``opener`` is a program that opens its argument in this browser, as ``xdg-open`` does; then ``attach``."""

    def __init__(self, folder: Path, chromium: str, driver: str) -> None:
        self._port = free_port()
        self._profile = folder / "profile"
        self.opener = folder / "xdg-open"
        command = [chromium, *_FLAGS, f"--remote-debugging-port={self._port}", f"--user-data-dir={self._profile}"]
        self.opener.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$1"\n')
        self.opener.chmod(0o755)
        self._driver = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self._driver.stdout is not None
        lines: list[str] = []
        while not (found := re.search(r"started successfully on port (\d+)", "".join(lines))):
            lines.append(self._driver.stdout.readline())
            assert lines[-1], "".join(lines)
        self._http = httpx2.Client(base_url=f"http://127.0.0.1:{found[1]}", trust_env=False, timeout=40.0)
        self._session = ""
        self._opened: subprocess.Popen[bytes] | None = None

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(method, f"/session{path}", json=body)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    def _ask(self, what: str, body: Any = None) -> Any:
        return self._send("GET" if body is None else "POST", f"/{self._session}/{what}", body)

    def attach(self) -> None:
        """To the browser that the program under test has opened; waits until it is there."""
        options = {"debuggerAddress": f"127.0.0.1:{self._port}"}
        wanted = {
            "alwaysMatch": {
                "goog:chromeOptions": options,
                "timeouts": {"implicit": _PATIENCE_MS, "script": _PATIENCE_MS},
            }
        }
        self._session = self._send("POST", "", {"capabilities": wanted})["sessionId"]

    def visit(self, address: str) -> None:
        """Go to this address; the first time with a browser that is started for it."""
        if self._session:
            self._ask("url", {"url": address})
            return
        self._opened = subprocess.Popen(
            [self.opener, address], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.attach()

    def run(self, script: str, *arguments: Any) -> Any:
        """What this body of an asynchronous function returns in the page; it gets ``arguments`` in ``arguments_``."""
        wrapped = (
            "const done = arguments[arguments.length - 1];"
            f"(async (arguments_) => {{ {script} }})([...arguments].slice(0, -1))"
            ".then(done, (fault) => done({fault: `${fault}`}));"
        )
        return self._ask("execute/async", {"script": wrapped, "args": [*arguments]})

    def _find(self, tag: str, text: str) -> str:
        """The element that holds exactly this text, as soon as it is there."""
        found = self._ask("element", {"using": "xpath", "value": f"//{tag}[normalize-space()={text!r}]"})
        return str(next(iter(found.values())))

    def reads(self, text: str, tag: str = "*") -> bool:
        """Whether a person sees this text, now or within the patience."""
        return self._ask(f"element/{self._find(tag, text)}/displayed") is True

    def click(self, button: str) -> None:
        """On the button that is labelled so."""
        self._ask(f"element/{self._find('button', button)}/click", {})

    @property
    def address(self) -> str:
        return str(self._ask("url"))

    @property
    def title(self) -> str:
        return str(self._ask("title"))

    def picture(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self._ask("screenshot"))

    def close(self) -> None:
        """The browser, if one was opened, and its driver."""
        mine = [each for each in psutil.process_iter() if self._is_mine(each)]
        if self._session:
            with contextlib.suppress(httpx2.HTTPError, AssertionError):
                self._ask("goog/cdp/execute", {"cmd": "Browser.close", "params": {}})
        self._http.close()
        _, left = psutil.wait_procs(mine, timeout=10)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        if self._opened is not None:
            self._opened.wait(timeout=10)
        self._driver.terminate()
        self._driver.communicate(timeout=10)

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            return f"--user-data-dir={self._profile}" in process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Chromium]:
    """A browser that is closed at the end. Skips the test where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium with chromedriver: apt-get install chromium chromium-driver")
    folder.mkdir()
    browser = Chromium(folder, program, driver)
    try:
        yield browser
    finally:
        browser.close()
