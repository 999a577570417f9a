"""logs.py: one event is one line, no secret gets into it, and nobody waits for it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import LogSettings
from proxy.http.framing import method_and_path
from proxy.observe.logs import Logs, configure
from proxy.protocol.dialects import Ending
from proxy.protocol.record import Outcome, Record
from proxy.protocol.redaction import Redactor, leaks
from proxy.protocol.usage import Scanner
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CANARY = "aks_live_" + "logs" + "7Rw2" * 6
TOKEN = base64.b64encode(json.dumps({"secret_key": CANARY, "connection_id": "conn_1"}).encode()).decode()


class Written:
    """A log to a file, and what is in it so far."""

    def __init__(self, path: Path, level: str = "info", form: str = "json") -> None:
        self.path = path
        self.logs: Logs = configure(LogSettings(level=level, format=form, file=str(path)), Redactor([CANARY]))  # type: ignore[arg-type]

    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def lines(self) -> list[dict[str, Any]]:
        """Every line of the file after the log was closed: each must be a JSON object."""
        self.logs.close()
        raw = self.path.read_bytes()
        assert raw == b"" or raw.endswith(b"\n")
        assert b"\r" not in raw
        return [json.loads(line) for line in raw.split(b"\n")[:-1]]


def _until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    log = Written(tmp_path / "proxy.log", level="debug")
    yield log
    log.logs.close()


def _record(**more: Any) -> Record:
    scanner = Scanner(Ending.CHAT, False)
    scanner.feed(b'{"model":"gpt-answered","usage":{"prompt_tokens":11,"completion_tokens":5}}')
    scanner.finish()
    record = Record("req_" + "0" * 24, "POST", "/v1/chat/completions", 0.0)
    record.project, record.provider, record.status = "main", "openai", 200
    record.first_byte_s, record.duration_s, record.bytes_in, record.bytes_out = 0.1234, 1.5, 100, 2000
    record.scanner, record.lava_request_id, record.outcome = scanner, "lava-1", Outcome.OK
    for name, value in more.items():
        setattr(record, name, value)
    return record


def test_a_request_is_one_line_with_all_its_fields(written: Written) -> None:
    """The line of a request: method, path, project, provider, model, status, outcome, times, bytes, ids, usage."""
    written.logs.request(_record())
    written.logs.request(
        _record(
            scanner=None,
            model="alias",
            status=None,
            first_byte_s=None,
            outcome=Outcome.CLIENT_GONE,
            error_code="upstream_timeout",
            upstream_error="overloaded_error",
        )
    )
    first, second = written.lines()
    stamp = first.pop("timestamp")
    assert stamp.endswith("Z")
    assert len(stamp) == len("2026-11-23T10:00:00.000Z")
    assert first == {
        "level": "info",
        "event": "request",
        "method": "POST",
        "path": "/v1/chat/completions",
        "project": "main",
        "provider": "openai",
        "model": "gpt-answered",
        "status": 200,
        "outcome": "ok",
        "first_byte_ms": 123.4,
        "duration_ms": 1500.0,
        "bytes_in": 100,
        "bytes_out": 2000,
        "input_tokens": 11,
        "output_tokens": 5,
        "request_id": "req_" + "0" * 24,
        "lava_request_id": "lava-1",
    }
    assert second["model"] == "alias"
    assert second["status"] is None
    assert second["first_byte_ms"] is None
    assert second["input_tokens"] is None
    assert (second["outcome"], second["error"]) == ("client_gone", "upstream_timeout")
    assert second["upstream_error"] == "overloaded_error"


def test_unusual_values_change_only_their_own_field(written: Written) -> None:
    """A value that is escaped, cut or masked leaves the other fields as they are, and in their order."""
    kinds: list[dict[str, Any]] = [
        {},
        {"scanner": None, "model": None, "status": None, "first_byte_s": None, "lava_request_id": None},
        {"outcome": Outcome.TRUNCATED, "error_code": "upstream_closed", "upstream_error": "cut", "first_byte_s": 0.0},
        {"project": None, "provider": None, "duration_s": 1234.56789, "bytes_out": 10**9},
    ]
    unusual = {"PÖST": "PÖST", "x" * 2000: "x" * 1024 + "…", f"a{CANARY}b": "a***b"}
    for kind in kinds:
        for method in ("POST", *unusual):
            written.logs.request(_record(**kind, method=method))
    events = written.lines()
    for at in range(0, len(events), 4):
        usual = events[at] | {"timestamp": None}
        for event, shown in zip(events[at + 1 : at + 4], unusual.values(), strict=True):
            assert list((event | {"timestamp": None}).items()) == list((usual | {"method": shown}).items())


NASTY = 'x\r\n{"event":"forged"}\x1b[31m\x00\x9b\u202eevil\u2028"\\\ud800\ufeff'


@pytest.mark.parametrize("form", ["json", "console"])
def test_nothing_from_outside_can_forge_or_colour_a_line(tmp_path: Path, form: str) -> None:
    """CR LF, escapes, NUL, bidi marks and JSON in path, model, ids, events and names: one line each, escaped."""
    written = Written(tmp_path / "log", form=form)
    logs = written.logs
    logs.request(_record(path=NASTY, model=NASTY, lava_request_id=NASTY, method=NASTY, upstream_error=NASTY))
    logs.info(
        NASTY, **{NASTY: NASTY, "deep": {NASTY: [NASTY, 1.5, float("nan")]}, "raw": NASTY.encode("utf-8", "ignore")}
    )
    logging.getLogger("uvicorn.error").warning("%s", NASTY)
    logs.close()
    raw = written.path.read_bytes()
    assert raw.count(b"\n") == 3
    text = raw.decode("utf-8")
    for bad in "\r\x1b\x00\x9b\u202e\u2028\ud800\ufeff":
        assert bad not in text
    if form == "json":
        events = written.lines()
        assert events[0]["path"] == NASTY
        assert events[1]["event"] == NASTY
        assert events[1]["deep"][NASTY] == [NASTY, 1.5, "nan"]


def test_no_spelling_of_a_secret_gets_into_the_log(written: Written) -> None:
    """Key, token, base64, hex and escaped forms, in every place a value can come in by, are masked."""
    logs = written.logs
    forms = [
        CANARY,
        TOKEN,
        base64.b64encode(b"xy" + CANARY.encode()).decode(),
        CANARY.encode().hex(),
        CANARY.replace("_", "%5F"),
    ]
    for form in forms:
        logs.request(_record(path=f"/v1/{form}", model=form, lava_request_id=form, upstream_error=form))
        logs.info(f"event {form}", field=form, nested={form: [form, {"x": form.encode()}]}, error=ValueError(form))
        logging.getLogger("anything").debug("sent %s", form)
        logging.getLogger("uvicorn.error").error("broken %r", {"token": form})
        try:
            secret = form
            raise RuntimeError(f"bad {secret}") from KeyError(form)
        except RuntimeError:
            logs.exception("failed", where=form)
            logging.getLogger("asyncio").exception("task failed")
    events = written.lines()
    assert len(events) == 6 * len(forms)
    assert leaks(written.text(), [CANARY, TOKEN]) == []
    assert "***" in events[0]["path"]


def test_a_secret_put_together_by_rendering_is_masked_and_the_line_stays_json(written: Written) -> None:
    """A value that only the rendered line holds is masked; if that would break the JSON, the line or the value is withheld."""
    logs = written.logs
    logs.set_redactor(Redactor(['":"bar","baz', "nabcdef"]))
    logs.info("first", foo="bar", baz=1)
    logs.info("second", text="\nabcdef")
    logs.request(_record(path="/\nabcdef"))
    events = written.lines()
    assert len(events) == 3
    assert '":"bar","baz' not in written.text()
    assert events[0]["event"] == "first"
    assert events[1]["event"] == "withheld: a secret"
    assert (events[2]["event"], events[2]["path"]) == ("request", "withheld: a secret")
    assert all(event["level"] for event in events)


def test_tracebacks_show_no_local_variables(written: Written) -> None:
    """An exception is told with its places and its message, and nothing of what the frames held."""
    local_only = "kept-in-a-frame-" + "z" * 8
    assert local_only
    try:
        raise ValueError("said aloud")
    except ValueError as error:
        written.logs.error("internal error", exc_info=error, request_id="r")
        logging.getLogger("uvicorn.error").error("crash", exc_info=True)
    events = written.lines()
    for event in events:
        assert "said aloud" in event["exception"]
        assert "test_logs.py" in event["exception"]
        assert "zzzz" not in event["exception"].replace("_", "")
    assert events[0]["request_id"] == "r"


@pytest.mark.parametrize("number", range(30))
def test_thirty_injected_exceptions_leak_nothing(tmp_path: Path, number: int) -> None:
    """However deep, chained, grouped, noted or rude the exception is, the key stays out of both formats."""
    rng = random.Random(number)

    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError(CANARY)

        def __repr__(self) -> str:
            return CANARY

    def raised(depth: int) -> None:
        held = CANARY + TOKEN
        if depth:
            try:
                raised(depth - 1)
            except Exception as inner:
                kind = rng.choice([ValueError, KeyError, RuntimeError, Rude])
                outer = kind(f"{held} {depth}")
                outer.add_note(f"note {TOKEN}")
                if rng.random() < 0.5:
                    raise outer from inner
                raise ExceptionGroup(CANARY, [outer, inner]) from None
        raise json.JSONDecodeError(CANARY, held, 0)

    for form in ("json", "console"):
        written = Written(tmp_path / form, form=form)
        try:
            raised(number % 6)
        except Exception as error:
            written.logs.error("failed", exc_info=error)
            logging.getLogger("asyncio").error("task", exc_info=error)
        written.logs.close()
        text = written.text()
        assert leaks(text, [CANARY, TOKEN]) == []
        assert "Traceback" in text
        # A console line that does not begin an event is indented.
        assert form == "json" or all(line[:4] == "    " or line[2] == ":" for line in text.split("\n") if line)


def test_credentials_that_are_not_ours_are_masked_by_shape(written: Written) -> None:
    """Header dumps of the HTTP libraries at DEBUG show no foreign key or cookie either."""
    log = logging.getLogger("httpcore2.http11")
    log.debug(
        "receive_response_headers.complete return_value=(b'HTTP/1.1', 200, [(b'Set-Cookie', b'sid=cookie-value; x')])"
    )
    log.debug("request headers {'authorization': 'Bearer other-people-key', \"x-api-key\": \"key-of-a-client\"}")
    log.debug("Authorization: Bearer other-people-key")
    logging.getLogger("anything").info("called with bearer other-people-key and went on")
    try:
        raise ValueError("header x-goog-api-key: key-of-a-client")
    except ValueError:
        log.exception("failed")
    logging.getLogger("hpack.hpack").debug("Adding (b'authorization', b'x') to the header table")
    text = str(written.lines())
    for value in ("cookie-value", "other-people-key", "key-of-a-client", "header table"):
        assert value not in text
    assert "and went on" in text
    assert "HTTP/1.1" in text


def test_the_level_holds_for_everything(tmp_path: Path) -> None:
    """Below the level nothing is written; the HTTP client's URLs at INFO only under debug; a reload can change it."""
    written = Written(tmp_path / "log", level="info")
    logs = written.logs
    logs.debug("no")
    logging.getLogger("proxy.daemon").debug("no")
    logging.getLogger("httpx2").info("HTTP Request: no")
    logging.getLogger("uvicorn.access").info("no")
    logs.info("yes")
    logging.getLogger("proxy.daemon").info("yes")
    logs.set_level("error")
    logs.warning("no")
    logs.request(_record(path="/no"))
    logging.getLogger("proxy.daemon").warning("no")
    logs.error("yes")
    logs.critical("yes")
    logs.set_level("debug")
    logging.getLogger("httpx2").info("yes")
    events = written.lines()
    assert [event["event"] for event in events] == ["yes"] * 5
    assert [event["level"] for event in events] == ["info", "info", "error", "critical", "info"]
    assert events[1]["logger"] == "proxy.daemon"


def test_closing_gives_logging_back_and_can_be_done_twice(tmp_path: Path) -> None:
    """After close the handlers and levels of ``logging`` are as before, and calls are harmless."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("httpx2").level, logging.getLogger("hpack").level)
    written = Written(tmp_path / "log")
    written.logs.close()
    written.logs.close()
    written.logs.info("late")
    written.logs.request(_record())
    after = (root.level, list(root.handlers), logging.getLogger("httpx2").level, logging.getLogger("hpack").level)
    assert after == before
    assert written.lines() == []


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask, an older file is tightened, a symbolic link is refused, lines are appended."""
    old_mask = os.umask(0)
    try:
        fresh = Written(tmp_path / "fresh")
        assert fresh.path.stat().st_mode & 0o777 == 0o600
        fresh.logs.close()
    finally:
        os.umask(old_mask)
    older = tmp_path / "older"
    older.write_text("{}\n")
    older.chmod(0o644)
    written = Written(older)
    written.logs.info("more")
    assert [event.get("event") for event in written.lines()] == [None, "more"]
    assert older.stat().st_mode & 0o777 == 0o600
    link = tmp_path / "link"
    link.symlink_to(older)
    for wrong in (link, tmp_path / "missing" / "log", tmp_path):
        with pytest.raises(OSError, match=r".+"):
            Written(wrong)
    threads = [thread.name for thread in threading.enumerate()]
    assert "log-writer" not in threads


def test_rotation(written: Written) -> None:
    """reopen() goes on in a new file of the name, and no line is lost."""
    written.logs.info("one")
    _until(lambda: "one" in written.text())
    moved = written.path.with_suffix(".1")
    written.path.rename(moved)
    written.logs.info("two")
    _until(lambda: "two" in moved.read_text())
    written.logs.reopen()
    _until(written.path.exists)
    written.logs.info("three")
    assert [event["event"] for event in written.lines()] == ["three"]
    assert moved.read_text().count("\n") == 2
    assert written.path.stat().st_mode & 0o777 == 0o600


def test_a_failed_rotation_keeps_the_old_file_and_says_so(tmp_path: Path) -> None:
    """Where the new file cannot be opened, lines go on into the old one."""
    home = tmp_path / "logs"
    home.mkdir()
    written = Written(home / "log")
    moved = tmp_path / "moved"
    home.rename(moved)
    written.logs.reopen()
    _until(lambda: "cannot be opened" in (moved / "log").read_text())
    written.logs.info("still here")
    written.logs.close()
    assert "still here" in (moved / "log").read_text()


def test_a_full_queue_drops_counts_and_tells(tmp_path: Path) -> None:
    """A reader that stops reading costs lines, not memory or time; later a line says how many."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=r".+"):  # nobody reads: opening must not hang
        Written(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        written = Written(pipe)
        began = time.monotonic()
        for number in range(60_000):
            written.logs.info("line", number=number, pad="x" * 100)
        assert time.monotonic() - began < 20
        os.set_blocking(reader, True)
        seen = io.BytesIO()

        def read() -> None:
            while chunk := os.read(reader, 1 << 16):
                seen.write(chunk)

        thread = threading.Thread(target=read)
        thread.start()

        def told() -> bool:
            written.logs.info("tick")
            return b"were dropped" in seen.getvalue()

        _until(told)
        written.logs.close()
        thread.join(20)
    finally:
        os.close(reader)


class Odd:
    """Neither text nor representation."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


def test_whatever_is_logged_the_writer_lives(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields, records and messages that cannot be rendered give some line, and the next line comes."""
    logs = written.logs
    loop: list[Any] = []
    loop.append(loop)
    logs.info("odd", value=Odd(), loop=loop, many=list(range(3)), kind=Odd, number=10**400)
    logs.info("long", text="x" * 1_000_000)
    logs.request(_record(path=7, model=Odd()))
    logs.request(object())  # type: ignore[arg-type]
    ours = [handler for handler in logging.getLogger().handlers if type(handler).__module__ == "proxy.observe.logs"]
    monkeypatch.setattr(logging.getLogger(), "handlers", ours)  # the test runner's own handlers do raise
    logging.getLogger("x").warning("%d %d", "wrong")
    logging.getLogger("x").warning("%s", Odd())
    logs.error("no exception", exc_info=True)
    logs.error("odd exception", exc_info=Odd())
    logs.info("the end")
    events = written.lines()
    assert len(events) == 9
    assert events[-1]["event"] == "the end"
    assert len(events[1]["text"]) < 10_000
    assert events[3]["event"] == "unloggable"


def test_threads_write_whole_lines(written: Written) -> None:
    """Many threads at once: every line arrives once and whole."""

    def work(name: int) -> None:
        for number in range(200):
            written.logs.info("t", name=name, number=number)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = written.lines()
    assert sorted((event["name"], event["number"]) for event in events) == [
        (a, b) for a in range(8) for b in range(200)
    ]


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    head = (
        "from proxy.observe.logs import configure; from proxy.config.settings import LogSettings; from proxy.protocol.redaction import Redactor\n"
        "import sys, logging\n"
    )
    return subprocess.run(
        [sys.executable, "-c", head + code],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, **environment},
        check=False,
    )


def test_lines_are_flushed_at_exit_without_close() -> None:
    """A program that ends, even by an exception, leaves no line behind; stderr without a terminal gets JSON."""
    result = _run(
        "logs = configure(LogSettings(), Redactor())\nfor n in range(500): logs.info('line', n=n)\nsys.exit(3)"
    )
    assert result.returncode == 3
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [event["n"] for event in events] == list(range(500))


def test_console_lines_are_readable_and_uncoloured_outside_a_terminal() -> None:
    """format = "console" to a pipe: time, level, event and fields, no colours, no JSON."""
    result = _run(
        "logs = configure(LogSettings(format='console'), Redactor())\nlogs.info('listening', port=5282, host='::1')"
    )
    assert "listening" in result.stderr
    assert "port=5282" in result.stderr
    assert "\x1b" not in result.stderr
    assert not result.stderr.startswith("{")


#: Told to a log by a program of its own: requests of many kinds.
REQUESTS = f"""
from proxy.protocol.record import Outcome, Record
def told(**more):
    record = Record("req_" + "0" * 24, "POST", "/v1/chat/completions", 0.0, outcome=Outcome.OK)
    for name, value in more.items():
        setattr(record, name, value)
    logs.request(record)
told(project="main", provider="openai", model="gpt-4o-mini", status=200, duration_s=1.5)
told(project="website", provider="anthropic", model="claude-" + "opus-" * 40, status=502, duration_s=0.25,
     outcome=Outcome.UPSTREAM_ERROR, error_code="upstream_unreachable")
told(path="/v1/groq/chat/completions", status=404, outcome=Outcome.REFUSED, error_code="path_not_found")
told(project="main", provider="openai", path="/openai/v1/files", method="GET", status=200)
told(project="p" * 64, provider="x" * 64, model="m", status=None, outcome=Outcome.CLIENT_GONE, duration_s=123456)
told(path={NASTY!r} * 9, method={NASTY!r}, status=400, outcome=Outcome.REFUSED, error_code="bad_target")
told(project="main", provider="openai", model="\u65e5\u672c" * 30, status=200)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("columns", [40, 80, 120, 0])
def test_a_request_is_one_row_of_a_terminal(columns: int) -> None:
    """Time, status, project, provider and model (a refusal has its path), duration, outcome: whatever comes in, one row that
    is no wider than the terminal, coloured by how it ended."""
    seen = _at_a_terminal(REQUESTS, columns)
    rows = [re.sub(r"\x1b\[\d*m", "", row) for row in seen.split("\r\n")[:-1]]
    assert len(rows) == 7
    assert max(map(len, rows)) <= (columns or 80)
    assert all(re.match(r"\d\d:\d\d:\d\d (\d{3}|---) ", row) and row.isascii() and row.isprintable() for row in rows)
    if columns != 40:
        assert rows[0].split()[1:] == ["200", "main", "openai/gpt-4o-mini", "1.50", "s", "ok"]
        assert "POST /v1/" in rows[2]
        assert "refused: path_not_found" in rows[2]
        assert "GET /openai/v1/files" in rows[3]
        assert "client_gone" in rows[4]
        assert rows[0].rindex("ok") == rows[3].rindex("ok")
    assert "\x1b[32m200" in seen
    assert "\x1b[31m502" in seen
    assert "\x1b[33m404" in seen


def test_a_row_has_tokens_and_masks_before_it_cuts(tmp_path: Path) -> None:
    """What a stream told of its tokens stands there; no part of a secret is left where a long name was cut."""
    log = Written(tmp_path / "log", form="console")
    log.logs.request(_record())
    log.logs.request(_record(model="m" * 20 + CANARY))
    log.logs.close()
    first, second = log.text().splitlines()
    assert re.sub(r" +", " ", first[9:]) == "200 main openai/gpt-answered 11+5 tok 1.50 s ok"
    assert leaks(second, [CANARY]) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_the_console_format_and_colours_unless_told_not_to(no_color: str) -> None:
    """auto on a terminal is the console; NO_COLOR takes its colours away."""
    seen = _at_a_terminal("logs.info('hello', port=1)", 80, NO_COLOR=no_color)
    assert "hello" in seen
    assert not seen.startswith("{")
    assert ("\x1b[" in seen) is (no_color == "")


def _at_a_terminal(code: str, columns: int, **environment: str) -> str:
    """What a program writes that tells `code` to a log at a terminal of so many columns (0: it does not say)."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    code = (
        "from proxy.observe.logs import configure; from proxy.config.settings import LogSettings; from proxy.protocol.redaction import Redactor\n"
        f"logs = configure(LogSettings(), Redactor())\n{code}\nlogs.close()"
    )
    env = {**os.environ, "NO_COLOR": "", "TERM": "xterm", **environment}
    with subprocess.Popen([sys.executable, "-c", code], stderr=slave, env=env) as process:
        os.close(slave)
        seen = b""
        with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
            while chunk := os.read(master, 4096):
                seen += chunk
        assert process.wait(50) == 0
    os.close(master)
    return seen.decode()


def test_a_json_log_loads_neither_structlog_nor_rich() -> None:
    """structlog imports rich, which costs the daemon memory and start-up time: only events for a terminal need it."""
    result = _run(
        "logs = configure(LogSettings(format='json'), Redactor())\n"
        "logs.error('event', exc_info=ValueError())\nlogs.close()\n"
        "assert not {'structlog', 'rich'} & set(sys.modules)\n"
        "logs = configure(LogSettings(format='console'), Redactor())\nlogs.info('event')\nlogs.close()\n"
        "assert 'structlog' in sys.modules"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("head", "shown"),
    [
        (b"GET /v1/realtime?model=gpt-realtime HTTP/1.1\r\nHost: x\r\nUpgrade: websocket", "GET /v1/realtime"),
        (b"\r\nPOST /v1/files HTTP/1.1\r\n", "POST /v1/files"),
        (b"GET /" + b"a" * 9000, "GET /" + "a" * 200),
        (b"GET /v1/x#fragment HTTP/1.1\r\n", "GET /v1/x"),
        (b"BREW /pot HTTP/1.1\r\n", "BREW /pot"),
        (b"GET http://user:password@host/x HTTP/1.1\r\n", ""),
        (b"\x16\x03\x01\x02\x00\x01", ""),
        (b"", ""),
    ],
)
def test_a_refusal_before_routing_has_its_path(head: bytes, shown: str) -> None:
    """Bytes that never become a request are told with what they asked for: no query, nothing that a terminal acts on."""
    assert method_and_path(head) == shown


@pytest.mark.parametrize(
    ("number", "text"),
    [(1, "1 request"), (0, "0 requests"), (2, "2 requests"), (1.0, "1 request"), (0.5, "0.5 requests")],
)
def test_one_is_no_plural(number: float, text: str) -> None:
    """Every message that counts things spells them by this."""
    assert counted(number, "request") == text
