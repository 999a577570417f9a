"""The default deadlines, which only time can show: all waits of this module run at the same time."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from security_stand import (
    FULL,
    Client,
    Stand,
    case,
    head,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


from typing import TYPE_CHECKING

SLOW_HEADS = 1000 if FULL else 150


class Waits:
    """What takes as long as the default limits, by name; everything that the selected tests need begins at once."""

    def __init__(self, pool: ThreadPoolExecutor, stand: Stand, selected: set[str]) -> None:
        port = stand.daemon("patient").port
        begun: dict[str, Callable[[], Any]] = {
            "test_silence": lambda: _watch_silence(port),
            "test_slow_heads": lambda: _slow_heads(port),
            "test_slow_body": lambda: _slow_body(stand, port),
            "test_slow_first_byte": lambda: _slow_first_byte(stand),
        }
        self._futures = {name: pool.submit(call) for name, call in begun.items() if name in selected}

    def result(self, name: str) -> Any:
        return self._futures[name].result(timeout=58)


@pytest.fixture(scope="module")
def waits(request: pytest.FixtureRequest, module_stand: Stand) -> Iterator[Waits]:
    """The waits of the tests of this module that are to run."""
    with ThreadPoolExecutor(4) as pool:
        mine = [item for item in request.session.items if item.path == request.path]
        yield Waits(pool, module_stand, {item.name.partition("[")[0] for item in mine})


@case("BOD-08")
@pytest.mark.full  # half a minute
@pytest.mark.timeout(90)
def test_slow_body(stand: Stand, waits: Waits) -> None:
    status, code, seconds = waits.result("test_slow_body")
    assert (status, code) == (408, "request_timeout")
    assert seconds > 29.0, seconds


@case("BOD-09")
def test_slow_heads(stand: Stand, waits: Waits) -> None:
    closed, count, answered = waits.result("test_slow_heads")
    assert len(closed) == count
    # At 10 s, not before; others are served meanwhile.
    assert min(closed) > 9.5, min(closed)
    assert answered > 0


@case("BOD-10")
def test_silence(stand: Stand, waits: Waits) -> None:
    found = waits.result("test_silence")
    assert [said[:13] for _, said in found] == [b"", b"", b"HTTP/1.1 408 ", b"HTTP/1.1 408 ", b""]
    for seconds, _ in found:
        assert seconds > 9.5, seconds


@case("UPS-12")
def test_slow_first_byte(stand: Stand, waits: Waits) -> None:
    status, seconds = waits.result("test_slow_first_byte")
    assert status == 200
    assert seconds > 5.5
    assert _default_limits() == {
        "first_byte": 600.0,
        "idle": 300.0,
        "total": 3600.0,
        "write_stall": 120.0,
        "connect": 10.0,
    }


def _default_limits() -> dict[str, float]:
    from proxy.config.settings import Upstream as UpstreamSettings

    default = UpstreamSettings()
    return {name: getattr(default, name) for name in ("first_byte", "idle", "total", "write_stall", "connect")}


def _watch_silence(port: int) -> list[tuple[float, bytes]]:
    """Connections that say nothing, or lines that end in CR alone: seconds until closed, and what was said."""
    found = []
    with contextlib.ExitStack() as stack:
        begun = time.monotonic()
        socks = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=25)) for _ in range(5)]
        socks[1].sendall(b"\r\n")
        socks[2].sendall(b"GET /openai/v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        socks[3].sendall(b"G")
        for sock in socks:
            said = b""
            with contextlib.suppress(ConnectionError):
                while data := sock.recv(65_536):
                    said += data
            found.append((time.monotonic() - begun, said))
    return found


def _slow_heads(port: int) -> tuple[list[float], int, int]:
    """Many connections that send a byte of a header now and then: when each was closed, and how many others were answered meanwhile."""
    import selectors

    selector = selectors.DefaultSelector()
    begun = time.monotonic()
    closed: list[float] = []
    answered = 0
    open_socks: set[socket.socket] = set()
    for _ in range(SLOW_HEADS):
        sock = socket.create_connection(("127.0.0.1", port), timeout=25)
        sock.sendall(b"POST /openai/v1/files HTTP/1.1\r\nX-Slow: ")
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, time.monotonic())
        open_socks.add(sock)
    last = time.monotonic()
    while open_socks and time.monotonic() - begun < 25:
        for key, _ in selector.select(0.05):
            sock = key.fileobj  # type: ignore[assignment]
            try:
                ended = not sock.recv(65_536)
            except ConnectionError:
                ended = True
            if ended:
                closed.append(time.monotonic() - key.data)
                selector.unregister(sock)
                open_socks.discard(sock)
                sock.close()
        if time.monotonic() - last > 1.0:
            last = time.monotonic()
            for sock in list(open_socks):
                with contextlib.suppress(OSError):
                    sock.send(b"a")
            with Client(port, None) as client:
                client.request("GET", "/openai/v1/files")
                assert client.response().status == 200
            answered += 1
    for sock in open_socks:
        sock.close()
    return closed, SLOW_HEADS, answered


def _slow_body(stand: Stand, port: int) -> tuple[int, str | None, float]:
    """A body of which a byte comes now and then: status, code and seconds, once the upstream was let go."""
    with Client(port, None) as client:
        client.send(head(port, "POST /openai/v1/slow-body HTTP/1.1", "Content-Length: 5000") + b"x")
        begun = time.monotonic()
        client.sock.settimeout(2.0)
        response = None
        while response is None and time.monotonic() - begun < 50:
            try:
                response = client.response()
            except TimeoutError:
                client.push(b"x")
        assert response is not None, "no 408 came"
        seconds = time.monotonic() - begun
        assert response.header("connection") == "close"
        client.sock.settimeout(10)
        assert client.rest() == b""
    until(lambda: any(b"slow-body" in target for target in stand.cut_patiently), 5)
    return response.status, response.code, seconds


def _slow_first_byte(stand: Stand) -> tuple[int, float]:
    """An upstream that thinks longer than stock clients wait: the status, and the seconds it took."""
    begun = time.monotonic()
    response = stand.post("/openai/v1/wait-six-seconds", at="patient")
    return response.status, time.monotonic() - begun
