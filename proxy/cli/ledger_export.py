"""``lava-proxy export``: every row of the ledger, page by page, in bounded memory."""

from __future__ import annotations

import csv
import json
import os
import sys
from contextlib import closing, contextmanager
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from proxy.cli import ledger_asking, terminal
from proxy.cli.ledger_asking import row_for_scripts
from proxy.cli.terminal import Exit, printable, say
from proxy.ledger import queries
from proxy.ledger.columns import TOKENS
from proxy.ledger.queries import Filter
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from proxy.ledger.reading import Book

Format = Literal["csv", "jsonl", "parquet"]

PAGE = 2000
"""Rows that are in memory at once, and that one read transaction is for."""

GROUP = 20_000
"""Rows of a group in a Parquet file: the file's end lists the groups, and stays in memory."""

NO_PARQUET = (
    "Parquet needs pyarrow, which is not installed. Install lava-proxy with the extra: "
    "pipx install 'lava-proxy[parquet]'; or use --format csv or jsonl."
)
_NUMBERS = ("first_byte_ms", "duration_ms")
_WHOLE = ("status", "bytes_in", "bytes_out", *TOKENS, "attempts")
_DOLLARS = ("cost_usd", "billed_usd", "pending_usd", "estimated_usd")


class _Sink(Protocol):
    def put(self, rows: list[dict[str, Any]]) -> None: ...
    def close(self) -> None: ...


def run(
    config: Path | None, *, form: Format, since: str | None, project: str | None, output: Path | None, as_json: bool
) -> int:
    """Write the rows since ``since``; returns the exit code. ``as_json`` is ``--format jsonl``."""
    form = "jsonl" if as_json else form
    if form == "parquet":
        try:
            import pyarrow  # type: ignore[import-untyped]  # noqa: F401
        except ImportError:
            return terminal.failed(NO_PARQUET, as_json=False)
        if output is None and sys.stdout.isatty():
            return terminal.misused("Parquet is not for a terminal: name a file with --output, or redirect it")

    def write(book: Book) -> int:
        wanted = Filter(project=project, since_us=ledger_asking.begin_us(since))
        try:
            with _opened(output) as file, closing(_sink(form, file)) as sink:
                count = _copy(book, wanted, sink)
        except OSError as error:
            if output is None:
                raise
            return terminal.failed(f"{output} cannot be written: {os.strerror(error.errno or 0)}", as_json=False)
        if output is not None:
            say(f"{counted(count, 'request')} written to {output}.")
        return Exit.OK

    return ledger_asking.ask(config, write, as_json=False)


def _copy(book: Book, wanted: Filter, sink: _Sink) -> int:
    after: tuple[int, int] | None = None
    count = 0
    while True:
        with book.reading() as connection:
            rows = queries.page(connection, wanted, after, PAGE)
        if rows or not count:  # without any row, too, CSV has a head
            sink.put([row_for_scripts(row) for row in rows])
        if not rows:
            return count
        count += len(rows)
        after = (rows[-1].received_us, rows[-1].seq)


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[bytes]]:
    """The file, for this user alone; or standard output. A file appears whole or not at all."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        part.replace(output)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sink(form: Format, file: IO[bytes]) -> _Sink:
    kinds: dict[Format, type[_Csv | _Lines | _Parquet]] = {"csv": _Csv, "jsonl": _Lines, "parquet": _Parquet}
    return kinds[form](file)


class _Lines:
    """One JSON object per line, ASCII only."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def put(self, rows: list[dict[str, Any]]) -> None:
        self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    def close(self) -> None:
        return


class _Csv:
    """Comma-separated, UTF-8, with a head. Unknown values are empty."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._head_written = False

    def put(self, rows: list[dict[str, Any]]) -> None:
        written = _Text()
        lines = csv.writer(written, lineterminator="\n")
        if not self._head_written:
            self._head_written = True
            lines.writerow(_columns())
        lines.writerows([_cell(value) for value in row.values()] for row in rows)
        self._file.write("".join(written.pieces).encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        return


class _Text:
    """What ``csv.writer`` writes to."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def write(self, text: str) -> None:
        self.pieces.append(text)


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Names come from outside: none may move a terminal's cursor, or be a formula of a spreadsheet.
        text = printable(value).replace("\n", "\\n")
        return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
    return value


class _Parquet:
    """Columns with types: times with their zone, dollars as decimals."""

    def __init__(self, file: IO[bytes]) -> None:
        import pyarrow
        import pyarrow.parquet  # type: ignore[import-untyped]

        self._pyarrow: Any = pyarrow
        self._schema = pyarrow.schema([(name, self._type(name)) for name in _columns()])
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._tables: list[Any] = []

    def _type(self, name: str) -> Any:
        if name == "received":
            return self._pyarrow.timestamp("us", tz="UTC")
        if name in _DOLLARS:
            return self._pyarrow.decimal128(24, 9)
        if name in _NUMBERS:
            return self._pyarrow.float64()
        if name == "streamed":
            return self._pyarrow.bool_()
        return self._pyarrow.int64() if name in _WHOLE else self._pyarrow.string()

    def put(self, rows: list[dict[str, Any]]) -> None:
        from datetime import datetime

        for row in rows:
            row["received"] = datetime.fromisoformat(row["received"])
            for name in _DOLLARS:
                row[name] = None if row[name] is None else Decimal(row[name])
        self._tables.append(self._pyarrow.Table.from_pylist(rows, schema=self._schema))
        if sum(table.num_rows for table in self._tables) >= GROUP:
            self._write()

    def close(self) -> None:
        self._write()
        self._writer.close()

    def _write(self) -> None:
        if self._tables:
            self._writer.write_table(self._pyarrow.concat_tables(self._tables))
            self._tables.clear()


def _columns() -> tuple[str, ...]:
    return (
        *("id", "received", "first_byte_ms", "duration_ms", "project", "provider", "model_asked", "model_served"),
        *("dialect", "endpoint", "streamed", "state", "outcome", "status", "error", "bytes_in", "bytes_out"),
        *(
            "tool",
            "session",
            "agent",
            "tags",
            *TOKENS,
            "attempts",
            "lava_request_id",
            "cost_source",
            *_DOLLARS,
            "prices",
        ),
    )
