"""Ledgers for tests: made-up records, and what stands in a database."""

from __future__ import annotations

import contextlib
import http.client
import sqlite3
from threading import Event, Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from proxy.config.settings import Settings
from proxy.ledger import opening
from proxy.ledger.columns import State
from proxy.ledger.pricing import Prices
from proxy.ledger.rows import request_id_of
from proxy.ledger.store import Store
from proxy.protocol.dialects import Ending
from proxy.protocol.errors import RequestIds
from proxy.protocol.record import Attempt, Outcome, Record, RequestFacts
from proxy.protocol.redaction import Secret
from proxy.protocol.usage import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemons import Daemon
    from sqlalchemy import Engine

FACTS = RequestFacts("openai-python", None, None, None, "openai", "chat")
CHAT = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}'
ANSWER = (
    b'{"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o-mini-2026", "choices": [], '
    b'"usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}'
)
_IDS = RequestIds()


def record(
    *,
    model: str = "gpt-4o-mini",
    usage: str = '{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}',
    sent: bool = True,
    response_id: str = "x",
    **fields: Any,
) -> Record:
    """A settled record; ``fields`` replace its own."""
    started = fields.pop("started", monotonic() - 0.5)
    made = Record(_IDS.next(), "POST", "/v1/chat/completions", started)
    values: dict[str, Any] = {
        "project": "website",
        "provider": "openai",
        "model": model,
        "status": 200,
        "outcome": Outcome.OK,
        "first_byte_s": 0.25,
        "duration_s": 0.5,
        "bytes_in": 100,
        "bytes_out": 300,
        "lava_request_id": f"req_{made.request_id[:3:-1]}",
        "facts": FACTS,
    }
    if sent:
        values["attempts"] = [Attempt("openai", model, started + 0.001, status=200)]
        scanner = values["scanner"] = Scanner(Ending.CHAT, False)
        scanner.feed(
            f'{{"id":"{response_id}","object":"chat.completion","model":"{model}-2026","usage":{usage}}}'.encode()
        )
        scanner.finish()
    for name, value in (values | fields).items():
        setattr(made, name, value)
    return made


def in_flight(**fields: Any) -> Record:
    """A record of a request that is not settled yet, and was sent."""
    made = record(outcome=None, status=None, first_byte_s=None, scanner=None, lava_request_id=None, **fields)
    for attempt in made.attempts:
        attempt.status = None
    return made


class Place:
    """One database of a test, and stores of it as several daemons have them."""

    def __init__(self, path: Path | None = None, url: str | None = None, **options: Any) -> None:
        where = {"path": str(path)} if path is not None else {"url": Secret(url or "")}
        self.settings = Settings.model_validate({"ledger": {**where, **options}})
        self.path = path
        self.warnings: list[str] = []
        self.prices = Prices()
        self._stores: list[Store] = []

    def store(self, daemon: str = "one", mask: Callable[[str], str] = str) -> Store:
        """A store of it, as a daemon of this name has."""
        made = Store(self.settings.ledger, daemon, self.warnings.append, [], mask, self.prices)
        self._stores.append(made)
        return made

    def rows(self, statement: str) -> list[dict[str, Any]]:
        """The rows that a statement finds, by a connection of its own."""
        with self._engine().begin() as connection:
            return [dict(row) for row in connection.execute(text(statement)).mappings()]

    def execute(self, *statements: str) -> None:
        """Execute statements in one transaction."""
        with self._engine().begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def _engine(self) -> Engine:
        url = self.settings.ledger.url
        return (
            opening.sqlite_engine(self.settings.ledger.file()) if url is None else opening.postgres_engine(url.reveal())
        )

    def close(self) -> None:
        """Close the stores."""
        for each in self._stores:
            each.close()


def rows_of(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """The rows that a statement finds in a SQLite file, which a daemon may have open."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(statement).fetchall()


def recorded(path: Path) -> dict[str, int]:
    """The state of each request in a SQLite file, by its id; nothing of a file that is no ledger yet."""
    try:
        return {request_id_of(stored): state for stored, state in rows_of(path, "SELECT id, state FROM requests")}
    except sqlite3.DatabaseError:
        return {}


def wait_until_recorded(path: Path, wanted: set[str], seconds: float = 20.0) -> dict[str, int]:
    """What is recorded once all of ``wanted`` are settled."""
    deadline = monotonic() + seconds
    while True:
        found = recorded(path)
        if wanted <= {each for each, state in found.items() if state == State.SETTLED}:
            return found
        assert monotonic() < deadline, f"{len(wanted - set(found))} of {len(wanted)} are not recorded"
        sleep(0.02)


def wait_for_output(daemon: Daemon, text: str, seconds: float = 20.0) -> None:
    """Return once the daemon has printed ``text``."""
    deadline = monotonic() + seconds
    while text not in daemon.output():
        assert monotonic() < deadline, f"{text!r} is not in:\n{daemon.output()[-2000:]}"
        sleep(0.02)


class Load:
    """Requests to a daemon from some threads, until ``stop``: each by one connection, one after the other.

    ``done`` has the ids of those that were answered, and when. A connection that breaks ends its thread.
    """

    def __init__(self, daemon: Daemon, threads: int = 4, pause: float = 0.0) -> None:
        self.done: list[tuple[str, float]] = []
        self.statuses: set[int] = set()
        self._daemon = daemon
        self._pause = pause
        self._over = Event()
        self._threads = [Thread(target=self._ask) for _ in range(threads)]
        for each in self._threads:
            each.start()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._daemon.port, timeout=20)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            while not self._over.is_set():
                connection.request("POST", "/v1/chat/completions", CHAT, {"content-type": "application/json"})
                response = connection.getresponse()
                response.read()
                self.done.append((response.headers["x-lava-proxy-request-id"], monotonic()))
                self.statuses.add(response.status)
                sleep(self._pause)

    @property
    def ids(self) -> set[str]:
        """The ids of the requests that were answered so far."""
        return {each for each, _ in list(self.done)}

    def wait_for(self, more: int) -> None:
        """Return once so many more requests were answered."""
        goal, deadline = len(self.done) + more, monotonic() + 30
        while len(self.done) < goal:
            assert monotonic() < deadline, "the daemon does not answer"
            sleep(0.002)

    def stop(self) -> set[str]:
        """End it. Return the ids of the requests that were answered."""
        self._over.set()
        for each in self._threads:
            each.join()
        return self.ids
