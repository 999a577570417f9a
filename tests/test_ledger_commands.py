"""The commands that read the ledger, as a person or a script meets them; in this process, unless the process is the subject."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from daemons import clean_environment
from ledger_rows import HOUR_US, START_US, Filler, Made, made_up, writable
from rawclient import ask
from test_cli import at_terminal, called, command

from proxy.cli import ledger_export
from proxy.config.settings import LedgerSettings
from proxy.ledger import queries, reading
from proxy.ledger.columns import TOKENS, VERSION, Bill, OutboxState, State
from proxy.ledger.lock import FileLock
from proxy.ledger.schema import MIGRATIONS
from proxy.protocol.clients import hashed
from proxy.protocol.redaction import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from daemons import StartDaemon

    from proxy.emulator import Emulator

READERS: list[tuple[str, ...]] = [
    ("logs",),
    ("stats",),
    ("cost",),
    ("export",),
    ("ledger", "status"),
    ("ledger", "check"),
    ("ledger", "prune"),
    ("ledger", "migrate"),
    ("ledger", "dead-letters"),
]


class Book:
    """A ledger file and a configuration that names it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.path = folder / "ledger.sqlite"
        self.config = folder / "config.toml"
        self.config.touch(mode=0o600)
        self.config.write_text(f"[ledger]\npath = {json.dumps(str(self.path))}\n", encoding="utf-8")

    def fill(self, made: Iterable[Made]) -> Filler:
        """Write rows; the file is then closed as the daemon closes it."""
        engine = writable(self.path)
        filler = Filler(engine)
        filler.fill(made)
        engine.dispose()
        return filler

    def __call__(self, *words: str, code: int = 0) -> Any:
        ran = called(self.folder, *words, "--config", self.config)
        assert ran.code == code, ran
        return ran


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


# What is no ledger


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_without_a_ledger_each_says_so_and_makes_none(book: Book, words: tuple[str, ...]) -> None:
    """Exit code 1, what is wrong and what to do; no file appears."""
    before = names(book.folder)
    ran = book(*words, code=1)
    assert ran.out == ""
    assert f"There is no ledger at {book.path}" in ran.err
    assert "lava-proxy serve" in ran.err
    assert names(book.folder) == before


@pytest.mark.parametrize("words", [each for each in READERS if each[0] != "export"], ids=" ".join)
def test_for_scripts_the_reason_is_json(book: Book, words: tuple[str, ...]) -> None:
    """``--json`` has an object with the reason on standard output."""
    ran = book(*words, "--json", code=1)
    assert ran.json["ok"] is False
    assert ran.json["code"] == "ledger_unreadable"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"no database at all, but long enough for one" * 50, "damaged or no database"), (b"", "is no ledger")],
    ids=["damaged", "empty"],
)
def test_what_is_no_ledger_is_named(book: Book, content: bytes, said: str) -> None:
    """A file of something else is neither read nor changed."""
    book.path.write_bytes(content)
    assert said in book("stats", code=1).err
    assert book.path.read_bytes() == content


def test_a_newer_schema_is_named(book: Book) -> None:
    """Both versions stand in the message, and nothing is changed."""
    book.fill([])
    with closing(sqlite3.connect(book.path)) as connection, connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    assert "has schema 99" in book("logs", code=1).err
    assert "has schema 99" in book("ledger", "migrate", code=1).err


def test_an_older_schema_is_migrated_by_the_command(book: Book) -> None:
    """Readers change nothing; ``ledger migrate`` does."""
    with closing(sqlite3.connect(book.path)) as connection, connection:
        connection.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
    assert "ledger migrate" in book("logs", code=1).err
    assert f"from schema 0 to {VERSION}" in book("ledger", "migrate").out
    assert f"has schema {VERSION} already" in book("ledger", "migrate").out
    assert "The ledger has no request yet." in book("logs").out


def test_the_password_of_a_database_is_never_shown() -> None:
    """Neither that of the address nor one in its query."""
    url = "postgresql+psycopg://me:secret-word@db.example.com/ledger?password=secret-word&sslmode=require"
    shown = reading.place(LedgerSettings(url=Secret(url)))
    assert "secret-word" not in shown
    assert "db.example.com/ledger" in shown


def test_a_database_that_is_away_is_a_sentence(tmp_path: Path, free_port: int) -> None:
    """PostgreSQL that nothing runs at: exit code 1, no password, no traceback."""
    config = tmp_path / "config.toml"
    config.touch(mode=0o600)
    config.write_text(f'[ledger]\nurl = "postgresql+psycopg://me:secret-word@127.0.0.1:{free_port}/x"\n')
    ran = called(tmp_path, "stats", "--config", config)
    assert ran.code == 1
    assert "PostgreSQL cannot be used" in ran.err
    assert "secret-word" not in ran.out + ran.err


def test_a_ledger_that_is_off_says_so(book: Book) -> None:
    """No file, because none is written."""
    with book.config.open("a", encoding="utf-8") as file:
        file.write("enabled = false\n")
    assert "none is written: enabled = false under [ledger]" in book("logs", code=1).err
    book.fill([Made("main", START_US)])
    assert "enabled = false" in book("ledger", "status").out
    assert len(book("logs", "--json").out.splitlines()) == 1


def test_the_schema_has_the_number_of_its_migrations() -> None:
    """The number stands alone, because readers do not import the tables."""
    assert len(MIGRATIONS) == VERSION


def test_readers_of_a_file_import_no_sqlalchemy(book: Book) -> None:
    """It takes longer to import than most questions take to answer."""
    book.fill(made_up(1, 50))
    for words in (("logs",), ("stats", "--since", "2000-01-01"), ("cost",), ("export",)):
        code = f"import sys; sys.argv[1:] = {[*words, '--config', str(book.config)]!r}; from proxy.cli import main\ntry: main()\n"
        code += "finally: print('sqlalchemy' in sys.modules, file=sys.stderr)"
        ran = subprocess.run(
            [sys.executable, "-c", code], env=clean_environment(book.folder), capture_output=True, text=True, check=True
        )
        assert ran.stderr == "False\n", words


# Reading beside the writer


def test_readers_leave_no_file_behind(book: Book) -> None:
    """Without a daemon, SQLite would create a WAL file and leave it there."""
    book.fill(made_up(1, 50))
    before = names(book.folder)
    for words in READERS[:6]:
        book(*words)
    assert names(book.folder) == before


def test_readers_and_a_writer_do_not_wait_for_each_other(book: Book) -> None:
    """While a transaction writes, what is committed is read; and the writer commits at once."""
    book.fill([Made("main", START_US)])
    with closing(sqlite3.connect(book.path, timeout=0, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE requests SET bytes_in = 5")
        assert len(book("logs", "--json").out.splitlines()) == 1
        assert json.loads(book("logs", "--json").out)["bytes_in"] == 100
        with reading.open_readonly(LedgerSettings(path=str(book.path)))() as reader:
            assert list(queries.ask(reader, "SELECT bytes_in FROM requests")) == [(100,)]
            writer.execute("COMMIT")
        assert json.loads(book("logs", "--json").out)["bytes_in"] == 5


# logs


def test_logs_show_one_line_per_request_the_newest_last(book: Book) -> None:
    """With tokens, cost and its source, and how it ended; plain, as this is no terminal."""
    book.fill(
        [
            Made("lab", START_US + 2_000_000, "timeout", attempts=[(True, None, None, None)]),
            Made(
                "website",
                START_US + 1_000_000,
                asked="fast",
                served="llama-3",
                provider="groq",
                tool="codex",
                tokens={"input": 12_000, "cache_read": 300, "output": 450},
                attempts=[(True, Bill.COMPLETED, 12_345_678, 9)],
            ),
            Made(
                "main", START_US + 3_000_000, None, state=State.OPEN, attempts=[(True, Bill.PENDING, None, 4_000_000)]
            ),
        ]
    )
    out = book("logs").out
    assert "\x1b" not in out
    head, *lines = out.splitlines()
    assert head.split() == ["time", "code", "project", "model", "tool", "tokens", "cost", "first", "total", "ended"]
    words = [re.split(r"\s{2,}", line.strip()) for line in lines[:3]]
    assert [each[2] for each in words] == ["website", "lab", "main"]
    assert words[0][3:] == ["groq/llama-3", "codex", "12.3k→450", "$0.0123 billed", "250ms", "900ms", "ok"]
    assert "unknown" in lines[1]
    assert "~$0.004 pending" in lines[2]
    assert lines[2].endswith("running")
    assert lines[3:] == ["", "~ is estimated by genai-prices 0.0.66 2026-11-20."]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--project", "lab"), 1),
        (("--model", "fast"), 1),
        (("--model", "llama-3"), 1),
        (("--tool", "codex"), 1),
        (("--outcome", "timeout"), 1),
        (("--session", "plain-session"), 1),
        (("--limit", "2"), 2),
        (("--since", "2000-01-01"), 3),
        (("--since", "1m"), 0),
    ],
)
def test_logs_are_filtered(book: Book, words: tuple[str, ...], count: int) -> None:
    """By each filter of its own."""
    book.fill(
        [
            Made("main", START_US - 2 * 10**14, asked="fast", served="llama-3"),
            Made("lab", START_US - 10**14, "timeout"),
            Made("main", START_US - 10**13 * 5, tool="codex", session=hashed("plain-session")),
        ]
    )
    assert len(book("logs", "--json", *words).out.splitlines()) == count


def test_a_misspelt_name_is_no_empty_result(book: Book) -> None:
    """The names that are there are shown."""
    book.fill([Made("website", START_US)])
    ran = book("logs", "--project", "webiste", code=1)
    assert "no project 'webiste'. There are: website." in ran.err


def test_a_wrong_time_is_wrong_usage(book: Book) -> None:
    """Exit code 2."""
    book.fill([])
    assert "--since is a time such as" in book("logs", "--since", "yesterday", code=2).err


def test_names_from_outside_move_no_cursor_and_are_no_formula(book: Book) -> None:
    """Control characters are escaped in every output; a spreadsheet sees text."""
    evil = "=cmd()\x1b]0;title\x07\r\nx"
    book.fill([Made("main", START_US, tool=evil, asked="a\x1b[2Jb", served=None)])
    for words in (("logs",), ("logs", "--json"), ("stats", "--by", "tool", "--since", "2000-01-01"), ("export",)):
        out = book(*words).out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out), words
        assert out.count("\n") <= 6
    assert ",'=cmd()" in book("export").out


def test_long_names_keep_the_table_narrow(book: Book) -> None:
    """Bounded, whatever a tool calls itself."""
    book.fill([Made("p" * 200, START_US, tool="t" * 400, asked="m" * 400)])
    for words in (("logs",), ("stats", "--by", "model", "--since", "2000-01-01"), ("cost", "--since", "2000-01-01")):
        assert max(map(len, book(*words).out.splitlines())) <= 160


class Following:
    """``logs -f`` as a process."""

    def __init__(self, book: Book, *words: str) -> None:
        self.process = subprocess.Popen(
            command("logs", "-f", *words, "--config", book.config),
            env=clean_environment(book.folder),
            cwd=book.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ended(self) -> tuple[int, str]:
        """The exit code and standard error."""
        assert self.process.stderr is not None
        code = self.process.wait(30)
        return code, self.process.stderr.read()

    def close(self) -> None:
        """End it, whatever has happened."""
        self.process.kill()
        self.process.communicate()


def test_follow_shows_what_ends_and_stops_at_ctrl_c(book: Book) -> None:
    """Requests in flight are shown once, when they have ended; Ctrl-C is a clean end."""
    filler = book.fill([Made("main", START_US), Made("main", START_US + 1, None, state=State.OPEN)])
    with closing(Following(book, "--json")) as following:
        assert json.loads(following.line())["received"].endswith(".000000Z")
        with closing(sqlite3.connect(book.path)) as connection, connection:
            connection.execute("UPDATE requests SET state = 1 WHERE seq = 2")
        assert json.loads(following.line())["received"].endswith(".000001Z")
        filler.fill([Made("lab", START_US + 2)])
        assert json.loads(following.line())["project"] == "lab"
        following.process.send_signal(signal.SIGINT)
        assert following.ended() == (0, "")


def test_follow_goes_on_with_a_new_ledger(book: Book) -> None:
    """The file is set aside; a new one, which has more requests already, is shown from its beginning."""
    book.fill([Made("main", START_US)])
    with closing(Following(book, "--json")) as following:
        assert json.loads(following.line())["project"] == "main"
        book.path.rename(book.folder / "aside.sqlite")
        new = Book(book.folder / "new")
        new.fill([Made("lab", START_US), Made("website", START_US + 1)])
        with closing(sqlite3.connect(new.path)) as connection, connection:
            connection.execute("UPDATE requests SET id = randomblob(12)")
        new.path.rename(book.path)
        assert [json.loads(following.line())["project"] for _ in range(2)] == ["lab", "website"]


def test_logs_say_that_there_are_more(book: Book) -> None:
    """The output is bounded, and does not look like all there is."""
    book.fill([Made("main", START_US + number) for number in range(60)])
    assert book("logs").out.endswith("\nThe newest 50; --limit N shows more.\n")
    assert "newest" not in book("logs", "--limit", "60").out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_tables_fit_the_terminal(book: Book, columns: int) -> None:
    """Columns are left out, names are cut; what is left out is named."""
    book.fill(
        [
            Made(
                "website",
                START_US + number * HOUR_US,
                tool="openai-python",
                provider="anthropic",
                asked="claude-opus-4-6",
                tokens=dict.fromkeys(TOKENS, 12_345),
                attempts=[(True, (Bill.COMPLETED, Bill.PENDING)[number % 2], 12_345_678_901, 12_000_000)],
            )
            for number in range(8)
        ]
    )
    env = {"TERM": "xterm-256color", "COLUMNS": str(columns)}

    def shown(*words: str) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", at_terminal(book.folder, env, *words, "--config", book.config))

    logs = shown("logs")
    stats = shown("stats", "--by", "model", "--since", "2000-01-01")
    assert max(map(len, (logs + stats).splitlines())) <= columns + 1
    assert "$12.35 billed" in logs
    assert re.search(r"claude-opus-4-6 +8 .*\$49.38", stats)
    assert "No room for " in stats


def test_follow_ends_when_its_reader_has_gone(book: Book) -> None:
    """Also while nothing comes that it could write; silently."""
    book.fill([Made("main", START_US)])
    with closing(Following(book)) as following:
        assert "time" in following.line()
        assert "main" in following.line()
        assert following.process.stdout is not None
        following.process.stdout.close()
        following.process.stdout = None
        assert following.ended() == (0, "")


def test_a_closed_pipe_is_silent(book: Book) -> None:
    """As of ``export | head -1``."""
    book.fill(made_up(3, 3000))
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -1', "sh", *command("export", "--config", book.config)],
        env=clean_environment(book.folder),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout.startswith("id,received,")
    assert done.stderr == ""


# cost


def git(folder: Path, *words: str, seconds: int = 0) -> str:
    """Run git with a fixed author and time."""
    moment = f"{seconds} +0000"
    env = {
        **{name: os.environ[name] for name in ("PATH",) if name in os.environ},
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_DATE": moment,
        "GIT_COMMITTER_DATE": moment,
    }
    options = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *options, *words], cwd=folder, env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_cost_of_a_range_of_commits(book: Book) -> None:
    """What was received from the one commit's time to the other's, and the output says so."""
    start = START_US // 1_000_000
    git(book.folder, "init", "-q")
    for number in range(3):
        git(book.folder, "commit", "-q", "--allow-empty", "-m", "x", seconds=start + 1000 * number)
    paid = [(True, Bill.COMPLETED, 10**9, None)]
    seconds = (-1, 0, 999, 1000, 1999, 2000)
    book.fill([Made("main", (start + second) * 1_000_000, attempts=list(paid)) for second in seconds])
    found = book("cost", "--git", "HEAD~2..HEAD~1", "--json").json
    assert (found["requests"], found["billed_usd"]) == (2, "2.000000000")
    assert "times of the commits" in found["how"]
    assert book("cost", "--git", "HEAD~2..", "--json").json["requests"] == 4
    shown = book("cost", "--git", "HEAD~2..HEAD").out
    assert shown.startswith("$4.00 billed for 4 requests.")
    assert "times of the commits" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--git", "HEAD"), "is a range of commits"),
        (("--git", "HEAD...HEAD"), "is a range of commits"),
        (("--git", "nothing..HEAD"), "has no commit 'nothing'"),
        (("--git", "--output=x..HEAD"), "has no commit '--output=x'"),
        (("--git", "HEAD..HEAD~1"), "is newer than"),
        (("--git", "HEAD~1..HEAD", "--since", "1d"), "exclude each other"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_a_wrong_range_is_wrong_usage(book: Book, words: tuple[str, ...], said: str) -> None:
    """Exit code 2 and a sentence; no word of it is an option of git."""
    book.fill([])
    git(book.folder, "init", "-q")
    for number in range(2):
        git(book.folder, "commit", "-q", "--allow-empty", "-m", "x", seconds=10**9 + number)
    assert said in book("cost", *words, code=2).err
    assert not (book.folder / "x").exists()


def test_outside_a_repository_it_says_so(book: Book) -> None:
    """The current directory decides."""
    book.fill([])
    assert "in no repository" in book("cost", "--git", "a..b", code=2).err


@pytest.mark.parametrize("stored", [hashed("the-session"), "the-session"], ids=["hashed", "plain"])
def test_the_cost_of_a_session_has_its_sub_agents(book: Book, stored: str) -> None:
    """By the id that the tool sends, however the ledger keeps it; of all time."""
    book.fill(
        [
            Made("main", START_US, session=stored, attempts=[(True, Bill.COMPLETED, 10**9, None)]),
            Made("main", START_US - 10**15, session=stored, agent="a", attempts=[(True, None, None, 5 * 10**8)]),
            Made("main", START_US, session="another", attempts=[(True, Bill.COMPLETED, 10**9, None)]),
        ]
    )
    found = book("cost", "--session", "the-session", "--json").json
    assert (found["requests"], found["billed_usd"], found["estimated_usd"]) == (2, "1.000000000", "0.500000000")
    by_agent = {each["agent"]: each["cost_usd"] for each in found["agents"]}
    assert by_agent == {None: "1.000000000", "a": "0.500000000"}
    out = book("cost", "--session", "the-session").out
    assert "By agent" in out
    assert re.search(r"estimated\s+1\s+\$0\.50", out)


def test_what_is_not_known_is_never_zero(book: Book) -> None:
    """Neither dollars that are not billed yet and have no estimate, nor a total of such requests."""
    book.fill(
        [
            Made("main", START_US, attempts=[(True, Bill.PENDING, None, None)]),
            Made("main", START_US, attempts=[(True, Bill.UNMETERED, None, None)]),
            Made("lab", START_US, attempts=[(True, Bill.COMPLETED, 0, 7)]),
        ]
    )
    since = ("--since", "2000-01-01")
    found = book("cost", "--project", "main", *since, "--json").json
    assert (found["cost_usd"], found["pending_usd"], found["estimated_usd"]) == (None, None, "0.000000000")
    out = book("cost", "--project", "main", *since).out
    assert out.startswith("Nothing is known of the cost of 2 requests of project main.")
    assert "$" not in out
    assert "1 request pending without an estimate, 1 request unmetered." in book("stats", *since).out
    free = book("cost", "--project", "lab", *since)
    assert free.out.startswith("$0.00 billed for 1 request of project lab.")


def test_the_price_table_of_an_estimate_is_named(book: Book) -> None:
    """With its version, in each row and beside each sum."""
    estimated = [(True, None, None, 5_000_000)]
    book.fill([Made("main", START_US, attempts=list(estimated)), Made("main", START_US, attempts=[])])
    assert [json.loads(line)["prices"] for line in book("logs", "--json").out.splitlines()] == [Made.prices, None]
    for words in (("logs",), ("stats", "--since", "2000-01-01"), ("cost", "--since", "2000-01-01")):
        assert f"by {Made.prices}" in " ".join(book(*words).out.split()), words


# check


def test_check_shows_the_ledger(book: Book, free_port: int) -> None:
    """Where it is and whether it can be written; a daemon says what was lost."""
    with book.config.open("a", encoding="utf-8") as file:
        file.write(f"[server]\nport = {free_port}\n[lava]\nsecret_key = 'aks_live_{'0' * 32}'\n")
    report = book("check", "--json").json["ledger"]
    assert report == {"enabled": True, "place": str(book.path), "problem": None, "dropped": None}
    assert not book.path.exists()
    book.path.mkdir()
    ran = book("check")
    assert f"can be written  no: {book.path} is no file" in ran.out
    assert "the ledger is not written, so no cost is recorded" in ran.out


# export


def test_parquet_has_types_and_the_same_rows(book: Book) -> None:
    """Times in UTC and dollars as decimals; as many rows as JSON lines, and their sum."""
    parquet = pytest.importorskip("pyarrow.parquet")
    book.fill(made_up(5, 300))
    file = book.folder / "out.parquet"
    assert "300 requests written" in book("export", "--format", "parquet", "--output", str(file)).err
    table = parquet.read_table(file)
    lines = [json.loads(line) for line in book("export", "--format", "jsonl").out.splitlines()]
    assert table.column_names == list(lines[0])
    assert str(table.schema.field("received").type) == "timestamp[us, tz=UTC]"
    assert table["billed_usd"].to_pylist() == [each["billed_usd"] and Decimal(each["billed_usd"]) for each in lines]
    assert table["input"].to_pylist() == [each["input"] for each in lines]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_pyarrow_the_extra_is_named(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, and what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    book.fill([])
    assert "lava-proxy[parquet]" in book("export", "--format", "parquet", code=1).err


def test_an_export_reads_page_by_page(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """No page holds more rows than the limit, and the pages are the whole."""
    monkeypatch.setattr(ledger_export, "PAGE", 40)
    sizes = []
    put = ledger_export._Lines.put

    def counted(self: Any, rows: list[dict[str, Any]]) -> None:
        sizes.append(len(rows))
        put(self, rows)

    monkeypatch.setattr(ledger_export._Lines, "put", counted)
    book.fill(made_up(6, 100))
    assert len(book("export", "--json").out.splitlines()) == 100
    assert sizes == [40, 40, 20]


def test_an_export_of_nothing_has_a_head(book: Book) -> None:
    """A program that reads the file finds its columns."""
    book.fill([])
    columns = book("export").out
    assert columns.startswith("id,received,")
    book.fill([Made("main", START_US)])
    assert columns.strip().split(",") == list(json.loads(book("export", "--json").out))


def test_an_export_that_cannot_be_written_leaves_nothing(book: Book) -> None:
    """The reason, and no half file."""
    book.fill([Made("main", START_US)])
    ran = book("export", "--output", str(book.folder / "missing" / "out.csv"), code=1)
    assert "cannot be written: No such file or directory" in ran.err
    assert not (book.folder / "missing").exists()


# ledger


def test_status_shows_what_there_is(book: Book) -> None:
    """Path, size, rows, schema, retention; and that no daemon answers."""
    book.fill([*made_up(7, 20), Made("main", START_US - HOUR_US)])
    found = book("ledger", "status", "--json").json
    assert found["ledger"] == str(book.path)
    assert found["requests"] == 21
    assert found["schema"] == VERSION
    assert found["keep"] == "90d"
    assert set(found["retention"]) >= {"requests", "attempts", "rollups", "outbox"}
    assert found["bytes"] == book.path.stat().st_size
    assert "requests 90d" in book("ledger", "status").out


def test_check_finds_a_wrong_sum(book: Book) -> None:
    """Exit code 0 while all is well; else 1, with the hour and the sum."""
    book.fill(made_up(8, 200))
    assert book("ledger", "check").out.count("✓") == 2
    with closing(sqlite3.connect(book.path)) as connection, connection:
        connection.execute("UPDATE rollups SET billed = billed + 7 WHERE hour = (SELECT MIN(hour) + 2 FROM rollups)")
    found = book("ledger", "check", "--json", code=1).json
    assert found["ok"] is False
    assert {each["name"] for each in found["differences"]} == {"billed"}
    assert "billed" in book("ledger", "check", code=1).out


def test_check_finds_a_damaged_file(book: Book) -> None:
    """A page overwritten in the middle of the file."""
    book.fill(made_up(9, 2000))
    with book.path.open("r+b") as file:
        file.seek(book.path.stat().st_size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))
    ran = book("ledger", "check", code=1)
    assert "damaged" in ran.out + ran.err


def _old_and_new(book: Book) -> None:
    now = time.time_ns() // 1000
    book.fill(
        [
            Made("main", now - 100 * 24 * HOUR_US, attempts=[(True, Bill.COMPLETED, 10**9, None)]),
            Made("main", now - HOUR_US, attempts=[(True, Bill.COMPLETED, 10**9, None)]),
        ]
    )


def test_prune_removes_what_is_too_old_and_keeps_its_sums(book: Book) -> None:
    """Rows beyond ``keep`` go; what they cost is still in the statistics."""
    _old_and_new(book)
    assert "1 request is older than 90d" in book("ledger", "prune", "--dry-run").out
    assert len(book("logs", "--json").out.splitlines()) == 2
    assert book("ledger", "prune", "--json").json == {
        "keep": "90d",
        "older": 1,
        "removed": 1,
        "by_the_daemon": False,
    }
    assert len(book("logs", "--json").out.splitlines()) == 1
    (group,) = book("stats", "--since", "200d", "--json").json["groups"]
    assert (group["requests"], group["billed_usd"]) == (2, "2.000000000")
    assert book("ledger", "check").code == 0


def test_while_a_daemon_has_the_ledger_prune_leaves_it_to_the_daemon(book: Book) -> None:
    """One process writes a file."""
    _old_and_new(book)
    lock = FileLock(book.path)
    try:
        found = book("ledger", "prune", "--json").json
        assert (found["older"], found["removed"], found["by_the_daemon"]) == (1, 0, True)
        assert "A daemon has the ledger" in book("ledger", "migrate", code=1).err
    finally:
        lock.release()
    assert len(book("logs", "--json").out.splitlines()) == 2


def _letters(book: Book, count: int) -> list[str]:
    """Put a usage record in delivery and ``count`` dead ones into the outbox; the ids of these."""
    book.fill([Made("website", START_US)])
    with closing(sqlite3.connect(book.path)) as connection, connection:
        for number in range(count + 1):
            state = OutboxState.DEAD if number else OutboxState.READY
            connection.execute(
                "INSERT INTO outbox (id, project, created_us, state, attempts, next_us, problem) VALUES (?, 1, ?, ?, 9, 5, ?)",
                (number.to_bytes(12, "big"), START_US, int(state), "Lava has other numbers\x1b[2J" if number else None),
            )
    return [f"req_{number:024x}" for number in range(1, count + 1)]


def _outbox(book: Book) -> list[tuple[int, int, str | None]]:
    with closing(sqlite3.connect(book.path)) as connection:
        return connection.execute("SELECT state, attempts, problem FROM outbox ORDER BY seq").fetchall()


def test_dead_letters_are_listed(book: Book) -> None:
    """With the reason; what is still in delivery is none."""
    ids = _letters(book, 2)
    assert [each["id"] for each in book("ledger", "dead-letters", "--json").json] == ids
    out = book("ledger", "dead-letters").out
    assert ids[0] in out
    assert "Lava has other numbers\\x1b[2J" in out
    assert "\x1b" not in out


def test_a_dead_letter_is_replayed(book: Book) -> None:
    """Only the one that was named; its count begins anew."""
    ids = _letters(book, 2)
    assert "1 dead letter will be delivered again" in book("ledger", "dead-letters", "replay", ids[0]).out
    assert _outbox(book)[1] == (OutboxState.READY, 0, None)
    assert _outbox(book)[2][0] == OutboxState.DEAD


def test_dead_letters_are_deleted_after_a_question(book: Book) -> None:
    """Without a terminal and ``--yes`` nothing is done; then all dead ones go, and nothing else."""
    _letters(book, 2)
    assert "add --yes" in book("ledger", "dead-letters", "delete", "--all", code=1).err
    assert len(_outbox(book)) == 3
    assert book("ledger", "dead-letters", "delete", "--all", "--yes", "--json").json == {"ok": True, "changed": 2}
    assert _outbox(book) == [(OutboxState.READY, 9, None)]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("replay",), 2, "needs the ids"),
        (("replay", "req_x", "--all"), 2, "needs the ids"),
        (("list", "req_x"), 2, "takes no id"),
        (("replay", "req_" + "0" * 24), 1, "There is no dead letter req_000"),
        (("delete", "nothing", "--yes"), 1, "There is no dead letter nothing"),
    ],
)
def test_wrong_words_about_dead_letters_change_nothing(
    book: Book, words: tuple[str, ...], code: int, said: str
) -> None:
    """A record that is still in delivery is no dead letter either."""
    _letters(book, 1)
    before = _outbox(book)
    assert said in book("ledger", "dead-letters", *words, code=code).err
    assert _outbox(book) == before


def test_while_a_daemon_has_the_ledger_no_letter_is_changed(book: Book) -> None:
    """One process writes a file: exit code 1, and what to do."""
    ids = _letters(book, 1)
    lock = FileLock(book.path)
    try:
        assert "Stop the daemon" in book("ledger", "dead-letters", "replay", *ids, code=1).err
    finally:
        lock.release()
    assert _outbox(book)[1][0] == OutboxState.DEAD


# All of it


def test_what_a_daemon_forwards_is_in_every_command(emulator: Emulator, daemon: StartDaemon, tmp_path: Path) -> None:
    """A real daemon, a real request by each of two tools; the commands run beside it and agree."""
    path = tmp_path / "ledger.sqlite"
    config = (
        f'default_project = "main"\n[lava]\nsecret_key = "env:KEY"\nbase_url = "{emulator.base_url}"\n'
        f"[ledger]\npath = {json.dumps(str(path))}\n[projects.main]\n[projects.website]\n"
    )
    running = daemon(config, env={"KEY": emulator.world.secret_key}, secrets=[emulator.world.secret_key])
    env = {"KEY": emulator.world.secret_key, "LAVA_PROXY_SERVER__PORT": str(running.port)}

    def ran(*words: str) -> Any:
        done = called(tmp_path, *words, "--config", running.config, env=env)
        assert done.code == 0, done
        return done

    body = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}'
    headers = {"Content-Type": "application/json", "x-claude-code-session-id": "s-1"}
    for path_of in ("/v1/chat/completions", "/p/website/v1/chat/completions"):
        assert ask(running.port, "POST", path_of, body, headers).status == 200
    deadline = time.monotonic() + 20
    rows: list[dict[str, Any]] = []
    while len(rows) < 2 and time.monotonic() < deadline:
        # The writer begins a moment after the daemon serves.
        done = called(tmp_path, "logs", "--json", "--config", running.config, env=env)
        rows = [json.loads(line) for line in done.out.splitlines()] if done.code == 0 else []
    assert [row["project"] for row in rows] == ["main", "website"]
    assert {row["outcome"] for row in rows} == {"ok"}
    assert all(row["input"] and row["output"] for row in rows)
    groups = ran("stats", "--json", "--since", "1h").json["groups"]
    assert sorted((group["name"], group["requests"]) for group in groups) == [("main", 1), ("website", 1)]
    assert ran("cost", "--session", "s-1", "--json").json["requests"] == 2
    assert len(ran("export", "--format", "csv").out.splitlines()) == 3
    status = ran("ledger", "status", "--json").json
    assert status["daemon"]["written"] == 2
    assert status["daemon"]["dropped"] == 0
    assert ran("ledger", "check", "--json").json["ok"] is True
    assert ran("check", "--json").json["ledger"] == {"enabled": True, "place": str(path), "problem": None, "dropped": 0}
