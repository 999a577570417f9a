"""The log: one line per event, written by a thread of its own, with every secret masked by value.

The event loop never waits for a disk or a terminal. A call only appends to a bounded queue, and a thread
writes its contents, in batches, so that there are few thread switches. Lines that do not fit into the queue are
dropped and counted, and a later line contains the count.

Each kind of line is made in one place. The JSON line of a request is made at once, after the response was sent: the
two threads share one interpreter, and switching between them costs more than the line. What requests have in common
is rendered and masked once, and cached. Everything else is made by the writer: events, and the rows of requests in a
terminal. structlog renders the events for a terminal, and is imported with the first of them: it imports rich (5 MiB).

Masking is done on the fields before rendering, and on the rendered text, for secrets that only rendering joined.
Tracebacks are the plain ones of the standard library: structlog's rich and dict forms show local variables, and the
forward token is one. The records of ``logging`` (uvicorn, asyncio, the HTTP client at any level) are handled in the
same way; in these, unknown credentials (a client's own key, a cookie) are masked by their shape as well.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import re
import stat
import sys
import time
import traceback
from collections import deque
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from proxy.protocol.threads import signals_left_to_main

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from proxy.config.settings import LogSettings
    from proxy.protocol.record import Record
    from proxy.protocol.redaction import Redactor

    Fields = MutableMapping[str, Any]
    # method, path, project, provider, model, status, outcome
    _What = tuple[str, str, str | None, str | None, str | None, int | None, str]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_QUEUE = 20_000
# Lines per write. Formatting a line holds the interpreter's lock, writing releases it.
_MAX_LINES = 256
# How long lines are collected before they are written: a thread switch per line would cost the loop more than the line.
_GATHER_S = 0.02
_CLOSE_S = 5.0
_MAX_LENGTH = 8 * 1024
# Limits of the cache of rendered JSON that requests have in common: entries, and characters of each.
_MAX_KNOWN = 2048
_MAX_KNOWN_LENGTH = 512
# Characters of a request's value.
_MAX_VALUE = 1024
_MAX_TRACE = 64 * 1024
_WITHHELD = "withheld: a secret"
_ENCODER = json.JSONEncoder(separators=(",", ":"))
# The columns of a row in a terminal. The target is cut to at least _LEAST, and a terminal below _NARROW shows no tokens.
_PROJECT, _WHERE, _TOKENS, _DURATION, _OUTCOME, _LEAST, _NARROW = 8, 34, 12, 7, 14, 8, 72
_DIM, _RED, _GREEN, _YELLOW, _RESET = "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
# Libraries that log every URL with its query at INFO; hpack and h2 log every header at DEBUG.
_QUIET = {"httpx2": "warning", "httpcore2": "warning", "uvicorn.access": "critical"}
_NEVER_DEBUG = ("hpack", "h2")

# Characters that could end a line, colour a terminal or reverse the order of its letters.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufff9-\ufffb]"
)
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_CREDENTIAL_NAMES = (
    "authorization|proxy-authorization|cookie|set-cookie|x-api-key|x-goog-api-key|api-key|xi-api-key|x-lava-proxy-key"
)
_CREDENTIALS = re.compile(
    rf"""((?:{_CREDENTIAL_NAMES})["']?\s*[,:=]\s*b?)(?:"[^"\n]*"|'[^'\n]*'|[^'"\n]+)"""
    r"""|(\bbearer\s+)[A-Za-z0-9+/_=.~-]+"""
    # A tool's own provider key is in no configuration, so its value is unknown; its prefix is known.
    r"""|\b(sk-|aiza|gsk_|xai-|aks_|lava_[a-z]{2}_)[A-Za-z0-9_-]{16,}""",
    re.IGNORECASE,
)


def configure(log: LogSettings, redactor: Redactor) -> Logs:
    """Start the log that `log` describes. Its owner calls `close` when everything else has ended.

    Raises OSError if the file cannot be opened (a symbolic link is not followed).
    """
    return Logs(log, redactor)


class Logs:
    """The running log. Any thread may call it. Only `close` waits for lines to be written.

    Fields are logged as given; ``exc_info`` may be an exception or True. No method raises errors of the log itself.
    """

    def __init__(self, log: LogSettings, redactor: Redactor) -> None:
        self._sink = _sink(log.file)
        self._console = log.format == "console" or (log.format == "auto" and self._sink.terminal)
        self._redactor = redactor
        self._threshold = _LEVELS[log.level]
        self._renderer: Callable[[Any, str, Any], Any] | None = None
        self._second = (-1, "")
        self._queue: deque[str | tuple[float, str, Any, Fields]] = deque()
        self._known: dict[_What, str] = {}
        self._dropped = 0
        self._dropped_told = 0
        self._wake = Event()
        self._stop = Event()
        self._busy = False
        self._waking: asyncio.AbstractEventLoop | None = None  # the loop that will wake the writer
        self._gathered = False  # the writer was woken after lines had been collected
        self._reopen = False
        self._handler = _Handler(self)
        self._levels: dict[str, int] = {}
        self._capture(log.level)
        self._thread = Thread(target=self._write, name="log-writer", daemon=True)
        with signals_left_to_main():
            self._thread.start()
        atexit.register(self.close)

    def debug(self, event: str, **fields: Any) -> None:
        self._log("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log("error", event, fields)

    def critical(self, event: str, **fields: Any) -> None:
        self._log("critical", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log an error with the exception that is being handled."""
        self._log("error", event, {"exc_info": True, **fields})

    def request(self, record: Record) -> None:
        """Log the line of a finished request. The record must not change afterwards."""
        if self._threshold > 20:
            return
        if self._console:
            self._put("info", record, {})
        else:
            self._append(self._request_line(record), soon=False)

    def set_redactor(self, redactor: Redactor) -> None:
        """Mask these values from the next line on (after a reload), including lines that are still queued."""
        self._redactor = redactor
        self._known = {}

    def mask(self, text: str) -> str:
        """Return ``text`` without the values that the log masks."""
        return self._redactor.text(text)

    def set_level(self, level: str) -> None:
        """Change the threshold, also of the captured libraries."""
        self._threshold = _LEVELS[level]
        self._release()
        self._capture(level)

    def reopen(self) -> None:
        """Reopen the file before the next line (log rotation)."""
        self._reopen = True
        self._wake.set()

    def close(self) -> None:
        """Write the queued lines and stop. Waits at most 5 s (a terminal may be stopped). May be called again."""
        if self._stop.is_set():
            return
        atexit.unregister(self.close)
        self._release()
        self._stop.set()
        self._wake.set()
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._sink.close()

    # The caller's side
    # ----------------------------------------------------------------------------------------

    def _log(self, level: str, event: str, fields: Fields) -> None:
        if _LEVELS[level] < self._threshold:
            return
        if fields.get("exc_info") is True:
            fields["exc_info"] = sys.exc_info()[1]
        self._put(level, event, fields)

    def _put(self, level: str, event: Any, fields: Fields) -> None:
        self._append((time.time(), level, event, fields))

    def _append(self, line: str | tuple[float, str, Any, Fields], *, soon: bool = True) -> None:
        """Queue a line. ``soon``: a line about a fault must not wait for a loop that the fault may block."""
        if len(self._queue) >= _QUEUE or self._stop.is_set():
            self._dropped += 1
            return
        self._queue.append(line)
        if self._busy or self._wake.is_set():
            return
        loop = None if soon else _running_loop()
        if loop is None:
            self._wake.set()
        elif self._waking is not loop:
            # Waking the thread at once would take the core and the interpreter's lock from the next request.
            self._waking = loop
            loop.call_later(_GATHER_S, self._wake_up)

    def _wake_up(self) -> None:
        self._waking = None
        self._gathered = True
        self._wake.set()

    def _request_line(self, record: Record) -> str:
        """Return the JSON line of a request. Never raises."""
        try:
            model, scanner = record.model, record.scanner
            inputs = outputs = None
            if scanner is not None:
                inputs, outputs = scanner.tokens
                model = model or scanner.model
            first = record.first_byte_s
            more = ""
            if record.error_code is not None:
                more = f',"error":{self._json_of(record.error_code)}'
            if record.upstream_error is not None:
                more += f',"upstream_error":{self._json_of(record.upstream_error)}'
            if record.hint is not None:
                more += f',"hint":{self._json_of(record.hint)}'
            what = (
                record.method,
                record.path,
                record.project,
                record.provider,
                model,
                record.status,
                record.outcome or "",
            )
            line = (
                f'{{"timestamp":"{self._stamp(time.time())}",{self._known.get(what) or self._json_of_what(what)},'
                f'"first_byte_ms":{"null" if first is None else _milliseconds(first)},'
                f'"duration_ms":{_milliseconds(record.duration_s)},"bytes_in":{record.bytes_in},'
                f'"bytes_out":{record.bytes_out},"input_tokens":{"null" if inputs is None else inputs},'
                f'"output_tokens":{"null" if outputs is None else outputs},"request_id":"{record.request_id}",'
                f'"lava_request_id":{self._json_of_id(record.lava_request_id)}{more}}}\n'
            )
            return self._masked(line) if self._redactor.crosses_values else line
        except Exception as error:  # noqa: BLE001 - a line must come out of a record of any kind
            return _unloggable(error)

    def _json_of_what(self, what: _What) -> str:
        """Return the members that requests of one tool have in common. Cached."""
        method, path, project, provider, model = map(self._json_of, what[:5])
        status, outcome = what[5:]
        text = (
            f'"level":"info","event":"request","method":{method},"path":{path},"project":{project},'
            f'"provider":{provider},"model":{model},"status":{"null" if status is None else status},"outcome":"{outcome}"'
        )
        if len(text) <= _MAX_KNOWN_LENGTH:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[what] = text
        return text

    def _json_of_id(self, value: str | None) -> str:
        """Return the same as ``_json_of``, for a value that differs in every request."""
        if value is None:
            return "null"
        if _ID.match(value) and not self._redactor.stands_in(value):
            return f'"{value}"'
        return self._json_of(value)

    def _json_of(self, value: str | None) -> str:
        """Return a value of a request as JSON: masked, then cut."""
        if value is None:
            return "null"
        masked = self._redactor.text(value)
        text = json.dumps(masked if len(masked) <= _MAX_VALUE else masked[:_MAX_VALUE] + "…")
        return text if self._redactor.text(text) is text else f'"{_WITHHELD}"'

    def _masked(self, line: str) -> str:
        """Mask the secrets that cross the values of a JSON line, which remains JSON."""
        masked = self._redactor.text(line)
        if masked is not line:
            try:
                json.loads(masked)
            except ValueError:  # a quote was masked
                stamp = json.loads(line)["timestamp"]
                return json.dumps({"timestamp": stamp, "level": "error", "event": _WITHHELD}) + "\n"
        return masked

    def _capture(self, level: str) -> None:
        """Capture the records of ``logging``, and remember the changed levels."""
        root = logging.getLogger()
        wanted = {"": level, **dict.fromkeys(_NEVER_DEBUG, max(level, "info", key=lambda name: _LEVELS[name]))}
        for name, quiet in _QUIET.items():
            wanted[name] = quiet if level != "debug" or name == "uvicorn.access" else level
        for name, each in wanted.items():
            logger = logging.getLogger(name)
            self._levels[name] = logger.level
            logger.setLevel(_LEVELS[each])
        root.addHandler(self._handler)

    def _release(self) -> None:
        logging.getLogger().removeHandler(self._handler)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)

    # The writer's side
    # ----------------------------------------------------------------------------------------

    def _write(self) -> None:
        while True:
            self._wake.wait()
            self._busy = True
            gathered, self._gathered = self._gathered, False
            if not gathered:
                self._stop.wait(_GATHER_S)
            self._wake.clear()
            stopping = self._stop.is_set()
            try:
                self._drain()
            except Exception:  # noqa: BLE001 - whatever happens, the writer lives
                self._dropped += 1
            self._busy = False
            if self._queue or self._reopen:
                self._wake.set()  # queued after the last check, when `_busy` was still set
            elif stopping:
                return

    def _drain(self) -> None:
        if self._reopen:
            self._reopen = False
            try:
                self._sink.reopen()
            except OSError as error:
                self._queue.append((time.time(), "error", "the log file cannot be opened again", {"reason": error}))
        # The lines that are queued now. Later ones are collected for the next batch: under load a line arrives while the
        # one before is written, and each would cost a write and two switches of the lock.
        left = len(self._queue)
        while left:
            lines: list[str] = []
            while left and len(lines) < _MAX_LINES:
                left -= 1
                each = self._queue.popleft()
                lines.append(each if isinstance(each, str) else self._line(*each))
            if self._dropped != self._dropped_told:
                count, self._dropped_told = self._dropped - self._dropped_told, self._dropped
                lines.append(self._line(time.time(), "warning", "log lines were dropped", {"count": count}))
            try:
                self._sink.write("".join(lines))
            except (OSError, ValueError):  # disk full, pipe closed, stream closed
                self._dropped += len(lines)

    def _line(self, when: float, level: str, event: Any, fields: Fields) -> str:
        """Return one event as one line, including its line end. Never raises."""
        try:
            if isinstance(event, str):
                fields = {"level": level, "event": event, **fields}
            elif isinstance(event, _Captured):
                text = _CREDENTIALS.sub(_mask, event.text)
                fields = {"level": level, "event": text, "logger": event.name, "exc_info": event.error}
            else:
                return self._row(when, event)
            error = fields.pop("exc_info", None)
            if isinstance(error, BaseException):
                text = "".join(traceback.format_exception(error)).removesuffix("\n")
                fields["exception"] = _CREDENTIALS.sub(_mask, text)
            fields = self._redactor.event(fields)
            if self._console:
                return self._console_line(when, fields)
            stamped = {"timestamp": self._stamp(when), **_bounded(fields)}
            return self._masked(_ENCODER.encode(stamped) + "\n")
        except Exception as error:  # noqa: BLE001 - fields of any kind come in, and a line must come out
            return _unloggable(error)

    def _row(self, when: float, record: Record) -> str:
        """Return the main values of a request as one row for the terminal. The JSON form has all of them."""
        mask = self._redactor.text
        model, scanner = record.model, record.scanner
        inputs, outputs = (None, None) if scanner is None else scanner.tokens
        model = model or (scanner.model if scanner is not None else None)
        where = f"{record.method} {record.path}"
        if record.provider is not None:
            where = f"{record.provider}/{model}" if model else f"{record.provider} {where}"
        error = record.error_code or record.upstream_error
        cells = _Row(
            self._stamp(when)[:8],
            "---" if record.status is None else str(record.status),
            _ascii(mask(record.project or "-")),
            _ascii(mask(where)),
            _tokens(inputs, outputs),
            _duration(record.duration_s * 1000),
            _ascii(mask(f"{record.outcome}: {error}" if error else str(record.outcome))),
        ).fitted(self._sink.width())
        line = str(cells)
        masked = mask(line)
        return (cells.coloured() if self._sink.colours and masked is line else masked) + "\n"

    def _console_line(self, when: float, fields: Fields) -> str:
        """Return the line of an event for the terminal, from masked fields, as structlog renders it."""
        if self._renderer is None:
            from structlog.dev import ConsoleRenderer, plain_traceback

            self._renderer = ConsoleRenderer(
                colors=self._sink.colours, exception_formatter=plain_traceback, sort_keys=False, pad_event_to=0
            )
        shown = {_plain(str(name)): _printable(name, value) for name, value in fields.items()}
        return self._redactor.text(str(self._renderer(None, "", {"timestamp": self._stamp(when), **shown}))) + "\n"

    def _stamp(self, when: float) -> str:
        second = int(when)
        known, text = self._second  # used by both threads: number and text are replaced together
        if second != known:
            if self._console:
                text = time.strftime("%H:%M:%S", time.localtime(second))
            else:
                text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second, text
        fraction = _FRACTIONS[int((when - second) * 1000)]
        return f"{text}.{fraction}" if self._console else f"{text}.{fraction}Z"


class _Row(NamedTuple):
    """The cells of a request's row, in ASCII, so that each letter takes one column."""

    time: str
    status: str
    project: str
    where: str
    tokens: str
    duration: str
    outcome: str

    def __str__(self) -> str:
        return " ".join(filter(None, self)).rstrip()

    def fitted(self, width: int) -> _Row:
        """Return it padded into columns, and no longer than ``width`` (0: unknown)."""
        width = width or _MAX_LENGTH
        tokens = self.tokens.rjust(_TOKENS) if self.tokens and width >= _NARROW else ""
        row = self._replace(
            project=_shortened(self.project, width // 5).ljust(_PROJECT),
            tokens=tokens,
            duration=self.duration.rjust(_DURATION),
        )
        # A request without tokens uses their column as well.
        most = _WHERE if tokens or width < _NARROW else _WHERE + _TOKENS + 1
        beside = len(str(row._replace(where=".", outcome="."))) - 2
        # A longer outcome may use the space of the column.
        column = max(min(width - beside - _OUTCOME, most), _LEAST)
        room = max(width - beside - max(len(self.outcome), _OUTCOME), _LEAST)
        where = _shortened(self.where, room).ljust(min(column, room))
        return row._replace(where=where, outcome=self.outcome[: max(width - beside - len(where), 0)])

    def coloured(self) -> str:
        good = self.status[0] == "2"
        colour = _GREEN if good else _RED if self.status[0] in "5-" else _YELLOW
        ended = _DIM if self.outcome == "ok" else _YELLOW if good else colour
        painted = self._replace(
            time=f"{_DIM}{self.time}{_RESET}",
            status=f"{colour}{self.status}{_RESET}",
            outcome=f"{ended}{self.outcome}{_RESET}",
        )
        return str(painted)


class _Captured(NamedTuple):
    """The logged part of a record of ``logging``."""

    name: str
    text: str
    error: BaseException | None


class _Handler(logging.Handler):
    """Receives the records of ``logging``."""

    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # Formatted here: the arguments may change after this call.
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - logging's own answer would print the arguments to stderr
            text = f"a message that cannot be formatted, from {record.pathname}:{record.lineno}"
        level = next((name for name in reversed(_LEVELS) if record.levelno >= _LEVELS[name]), "debug")
        error = record.exc_info[1] if record.exc_info else None
        self._logs._put(level, _Captured(record.name, text, error), {})


class _Stream:
    """stderr or stdout, as it was when the log started."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None if the program has no console
        self.terminal = stream is not None and stream.isatty()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or sys.platform == "win32"
        self.colours = self.terminal and not plain

    def write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        self._stream.flush()

    def width(self) -> int:
        """Return the columns of the terminal (80 if unknown); 0 if there is none."""
        if self._stream is None or not self.terminal:
            return 0
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def reopen(self) -> None:
        """Do nothing: a stream cannot be reopened."""

    def close(self) -> None:
        """Do nothing: the stream belongs to the process."""


class _File:
    """A file that only its owner can read, appended to."""

    terminal = False
    colours = False

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = self._open()

    def _open(self) -> int:
        # No link is followed: if others can write to the directory, it could lead to any file of ours. Not blocking, or
        # opening a pipe without a reader would hang the start.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
            flags |= getattr(os, name, 0)  # not everywhere
        descriptor = os.open(self._path, flags, 0o600)
        try:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_mode & 0o077 and hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def width(self) -> int:
        return 0

    def reopen(self) -> None:
        """Continue in a new file with the same name; keep the old one if that fails (OSError)."""
        old, self._descriptor = self._descriptor, self._open()
        os.close(old)

    def close(self) -> None:
        os.close(self._descriptor)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _sink(path: str) -> _Stream | _File:
    # Both are symbolic links, but containers' configurations use them.
    streams = {"": sys.stderr, "/dev/stderr": sys.stderr, "/dev/stdout": sys.stdout}
    return _Stream(streams[path]) if path in streams else _File(path)


def _unloggable(error: Exception) -> str:
    return json.dumps({"level": "error", "event": "unloggable", "reason": type(error).__name__}) + "\n"


_FRACTIONS = tuple(f"{number:03d}" for number in range(1000))
_TENTHS = tuple(f"{number / 10:.1f}" for number in range(200))


def _milliseconds(seconds: float) -> str:
    """Return milliseconds, to a tenth. Formatting a number is slow, and most are small."""
    tenths = int(seconds * 10_000 + 0.5)
    return _TENTHS[tenths] if 0 <= tenths < 200 else f"{tenths / 10:.1f}"


def _ascii(text: str) -> str:
    """Return `text` in characters of one column each, anything else as an escape."""
    return _plain(text).encode("ascii", "backslashreplace").decode("ascii")


def _shortened(text: str, room: int) -> str:
    """Return `text` without its middle if it is longer than `room`: both ends of a name or a path are informative."""
    if len(text) <= room:
        return text
    if room < 8:
        return text[:room]
    left = (room - 2) // 2
    return f"{text[:left]}..{text[len(text) - (room - 2 - left) :]}"


def _tokens(inputs: int | None, outputs: int | None) -> str:
    if inputs is None and outputs is None:
        return ""
    return f"{'?' if inputs is None else inputs}+{'?' if outputs is None else outputs} tok"


def _duration(milliseconds: float) -> str:
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.2f} s" if seconds < 99.995 else f"{seconds:.0f} s"


def _mask(match: re.Match[str]) -> str:
    return f"{match[1] or match[2] or match[3]}***"


def _bounded(value: Any, name: str = "") -> Any:
    """Return `value` with long texts cut, and numbers that JSON does not support as text."""
    if isinstance(value, dict):
        return {str(key): _bounded(each, str(key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_bounded(each) for each in value]
    if isinstance(value, bytes):
        return _bounded(value.decode("utf-8", "replace"))
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, str):
        limit = _MAX_TRACE if name == "exception" else _MAX_LENGTH
        return value if len(value) <= limit else value[:limit] + "…"
    return value


def _plain(text: str) -> str:
    """Return `text` with control characters for a terminal shown as escapes."""
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1] if match[0] < "\x80" else _escape(match[0]), text)


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) > 0xFF else f"\\x{ord(character):02x}"


def _printable(name: str, value: Any) -> Any:
    """Return `value` for a console line. The lines of a traceback are indented, so that none looks like an event."""
    value = _bounded(value, name)
    if name == "exception" and isinstance(value, str):
        return "\n".join("    " + _plain(line) for line in value.split("\n"))
    if isinstance(value, (dict, list)):
        value = json.dumps(value, ensure_ascii=False)
    return _plain(value) if isinstance(value, str) else value
