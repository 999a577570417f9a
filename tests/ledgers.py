"""Ledgers for tests: made-up records, and what stands in a database."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from proxy.config.settings import Settings
from proxy.ledger import opening
from proxy.ledger.store import Store
from proxy.protocol.dialects import Ending
from proxy.protocol.errors import RequestIds
from proxy.protocol.record import Attempt, Outcome, Record, RequestFacts
from proxy.protocol.redaction import Secret
from proxy.protocol.usage import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Engine

FACTS = RequestFacts("openai-python", None, None, None, "openai", "chat")
_IDS = RequestIds()


def record(
    *,
    model: str = "gpt-4o-mini",
    usage: str = '{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}',
    sent: bool = True,
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
        scanner.feed(f'{{"id":"x","object":"chat.completion","model":"{model}-2026","usage":{usage}}}'.encode())
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
        self._stores: list[Store] = []

    def store(self, daemon: str = "one", mask: Callable[[str], str] = str) -> Store:
        """A store of it, as a daemon of this name has."""
        made = Store(self.settings.ledger, daemon, self.warnings.append, [], mask)
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
