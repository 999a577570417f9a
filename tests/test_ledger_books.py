"""Both books, with a real daemon, its ledger, and the emulator as biller."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
from datetime import UTC, datetime
from decimal import Decimal
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any

import pytest
from daemons import run_command
from ledgers import CHAT, Place, record, recorded, rows_of, wait_until_recorded
from rawclient import ask, post

from proxy.config.settings import Settings
from proxy.emulator.biller import TokenPrices
from proxy.emulator.records import IssuedKey, StoredRequest, new_id
from proxy.ledger import opening
from proxy.ledger.accounts import accounts_of
from proxy.ledger.columns import Bill, State
from proxy.ledger.direct import Direct
from proxy.ledger.reconcile import Reconciler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from daemons import Daemon, StartDaemon
    from postgres import Server
    from sqlalchemy import Connection

    from proxy.emulator import Emulator


class Books:
    """A daemon in front of an emulator, and the commands that compare them."""

    def __init__(
        self,
        start: StartDaemon,
        emulator: Emulator,
        folder: Path,
        more: str = "",
        *,
        env: Mapping[str, str] | None = None,
        url: str | None = None,
    ) -> None:
        self.emulator = emulator
        self.folder = folder
        self.path = folder / "ledger.sqlite"
        self._start = start
        self._lava = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{emulator.base_url}"\n[ledger]\n'
        self._lava += f'path = "{self.path}"\n' if url is None else f'url = "{url}"\n'
        self.env = {"KEY": emulator.world.secret_key, **(env or {})}
        self.daemon: Daemon = self.start(more)
        emulator.world.account.wallet_balance = Decimal(1_000_000)

    def start(self, more: str = "") -> Daemon:
        """Start a daemon; ``more`` follows its [ledger]."""
        self.daemon = self._start(self._lava + more, env=self.env, secrets=self.env.values())
        return self.daemon

    def send(self, count: int, model: str = "gpt-4o-mini", **headers: str) -> list[str]:
        """Send chats, and return the ids of the requests."""
        body = json.loads(CHAT) | {"model": model}
        ids = []
        for _ in range(count):
            response = post(self.daemon.port, "/v1/chat/completions", body, headers)
            ids.append(response.header("x-lava-proxy-request-id") or "")
        return ids

    def recorded(self, ids: list[str]) -> None:
        """Wait until these are in the ledger."""
        wait_until_recorded(self.path, set(ids))

    def command(self, *words: str, code: int = 0) -> Any:
        """The JSON of a command, which must exit with ``code``."""
        done = run_command([*words, "--json", "--config", str(self.daemon.config)], home=self.folder, env=self.env)
        assert done.returncode == code, (done.stdout, done.stderr)
        return json.loads(done.stdout)

    def close_month(self, code: int = 0, after: str = "0s") -> Any:
        """The books of the present month."""
        return self.command("close", f"{datetime.now(UTC):%Y-%m}", "--settled-after", after, code=code)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        return rows_of(self.path, statement)


@pytest.fixture
def books(daemon: StartDaemon, emulator: Emulator, tmp_path: Path) -> Books:
    return Books(daemon, emulator, tmp_path, "reconcile_seconds = 0.5\n")


def causes(document: Any) -> dict[str, int]:
    """Requests by cause, of one account."""
    (account,) = document["accounts"]
    return {each["cause"]: each["requests"] for each in account["differences"]}


def test_the_daemon_books_what_lava_billed(books: Books) -> None:
    """Without being asked, to the last billionth; and the sums per hour are still those of the rows."""
    books.emulator.world.behaviour.biller.pending_seconds = 0.3
    books.recorded(books.send(5))
    billed = sum(each.cost for each in books.emulator.world.billing.records.values())
    deadline = monotonic() + 20
    while books.rows("SELECT count(*) FROM attempts WHERE bill = 2") != [(5,)]:
        assert monotonic() < deadline, books.daemon.output()
        sleep(0.05)
    assert books.rows("SELECT sum(billed) FROM attempts") == [(int(billed * 10**9),)]
    read = b"\nlava_proxy_ledger_reconciled_timestamp_seconds 1."
    while read not in ask(books.daemon.port, "GET", "/metrics").body:
        assert monotonic() < deadline
        sleep(0.05)
    assert books.command("ledger", "check")["ok"]
    books.close_month()


QUIET = "reconcile_seconds = 600\n"


@pytest.fixture
def quiet(daemon: StartDaemon, emulator: Emulator, tmp_path: Path) -> Books:
    """With a daemon that does not reconcile during the test: the commands do."""
    return Books(daemon, emulator, tmp_path, QUIET)


@pytest.mark.parametrize("stopped", [False, True], ids=["beside a daemon", "without one"])
def test_every_difference_has_a_cause(quiet: Books, stopped: bool) -> None:
    """Lost, doubled, unmetered, refused and unanswered requests, and a change of price: all explained."""
    biller = quiet.emulator.world.behaviour.biller
    ids = quiet.send(3)
    biller.set_prices(TokenPrices(Decimal("0.000003"), output=Decimal("0.000015")))
    ids += quiet.send(2)
    for fault in ("record-lost", "record-doubled", "record-unmetered", "html-502", "no-answer", "status-500"):
        ids += quiet.send(1, **{"x-emulator-fault": fault})
    quiet.recorded(ids)
    if stopped:
        quiet.daemon.stop()
    document = quiet.close_month()
    assert document["closed"]
    assert document["unexplained_usd"] == "0.000000000"
    # A 500 of a provider and an answer that never came have a record; so has the one of the edge in front.
    assert causes(document) == {"duplicate": 1, "lost": 1, "charged_unrecorded": 1}
    (account,) = document["accounts"]
    assert (account["here"]["requests"], account["here"]["billed"]) == (11, 7)
    (duplicate,) = account["duplicates"]
    assert duplicate["request"] in ids
    stored = quiet.rows("SELECT count(*) FROM attempts WHERE bill = 2")
    assert stored == [(7 if stopped else 0,)]
    assert quiet.command("ledger", "check")["ok"]
    days = quiet.command("reconcile", "--settled-after", "0s")["accounts"][0]["days"]
    assert sum(day["matched"]["requests"] for day in days) == 10
    assert sum(sum(day["only_here"].values()) for day in days) == 1


def test_a_phantom_is_named(quiet: Books) -> None:
    """A charge of no request of ours: the month does not close."""
    quiet.recorded(quiet.send(2))
    world = quiet.emulator.world
    real = next(iter(world.billing.records.values()))
    planted = StoredRequest("req_planted", "completed", "openai", real.endpoint, real.created_at)
    planted.cost = planted.charge = Decimal("0.125")
    world.billing.add(planted, 100)
    document = quiet.close_month(code=1)
    assert (document["unexplained_requests"], document["unexplained_usd"]) == (1, "0.125000000")
    (phantom,) = document["accounts"][0]["phantoms"]
    assert (phantom["record"], phantom["usd"], phantom["request"]) == ("req_planted", "0.125000000", None)


def test_a_late_record_is_waited_for(quiet: Books) -> None:
    """While Lava may still write it, the request is undecided, and the month not closed; later it is billed."""
    quiet.emulator.world.behaviour.biller.delay_seconds = 2.0
    quiet.recorded(quiet.send(1))
    assert causes(quiet.close_month(code=1, after="1h"))["undecided"] == 1
    sleep(2.0)
    assert causes(quiet.close_month(after="1h")) == {}


def test_a_charge_whose_record_may_still_come_is_undecided(quiet: Books) -> None:
    """Lava's sums have it already. It is one request, not one in each book."""
    quiet.recorded(quiet.send(1, **{"x-emulator-fault": "record-lost"}))
    (charged,) = quiet.emulator.world.billing.records.values()
    document = quiet.close_month(code=1, after="1h")
    assert (document["unexplained_requests"], document["unexplained_usd"]) == (1, f"{charged.cost:.9f}")


def test_a_missing_record_that_turns_up_is_booked(quiet: Books) -> None:
    """Taken as missing first, and billed when it is listed after all."""
    world = quiet.emulator.world
    quiet.recorded(quiet.send(1, **{"x-emulator-fault": "record-lost"}))
    quiet.daemon.stop()
    quiet.close_month()
    assert quiet.rows("SELECT bill FROM attempts") == [(Bill.MISSING,)]
    (record,) = world.billing.records.values()
    record.lost = False
    assert causes(quiet.close_month()) == {}
    assert quiet.rows("SELECT bill, billed FROM attempts") == [(Bill.COMPLETED, int(record.cost * 10**9))]
    assert quiet.command("ledger", "check")["ok"]


def test_a_charge_without_an_answer_is_found(quiet: Books) -> None:
    """By our id in the metadata: no id of Lava's ever came."""
    (request,) = quiet.send(1, **{"x-emulator-fault": "no-answer"})
    quiet.recorded([request])
    quiet.daemon.stop()
    assert quiet.rows("SELECT lava_id FROM attempts") == [(None,)]
    assert causes(quiet.close_month()) == {}
    ((lava_id, bill),) = quiet.rows("SELECT lava_id, bill FROM attempts")
    assert lava_id in quiet.emulator.world.billing.records
    assert bill in (Bill.COMPLETED, Bill.UNMETERED)


def test_another_amount_is_a_difference(quiet: Books) -> None:
    """Lava corrects a record after it was booked."""
    quiet.recorded(quiet.send(1))
    quiet.daemon.stop()
    quiet.close_month()
    (record,) = quiet.emulator.world.billing.records.values()
    record.cost = Decimal("0.5")
    (account,) = quiet.command("reconcile")["accounts"]
    assert [each["what"] for each in account["differing"]] == ["Lava has changed the amount, to $0.50"]
    assert quiet.rows("SELECT billed FROM attempts") == [(500_000_000,)]
    assert quiet.command("ledger", "check")["ok"]


def test_lost_rows_are_rebuilt(quiet: Books) -> None:
    """From the records with our id, once; a daemon that has the file is not disturbed."""
    ids = quiet.send(3) + quiet.send(1, **{"x-emulator-fault": "record-doubled"})
    quiet.recorded(ids)
    quiet.daemon.stop()
    for suffix in ("", "-wal", "-shm"):
        quiet.path.with_name(quiet.path.name + suffix).unlink(missing_ok=True)
    quiet.start(QUIET)
    more = quiet.send(1)
    quiet.recorded(more)
    assert causes(quiet.close_month(code=1))["phantom"] == 5
    assert quiet.command("ledger", "heal", code=1) | {"billed_usd": ""} == {
        "stored": False,
        "healed": 4,
        "billed_usd": "",
        "without_our_id": 0,
    }
    quiet.daemon.stop()
    assert quiet.command("ledger", "heal")["healed"] == 4
    assert quiet.command("ledger", "heal")["healed"] == 0
    found = quiet.rows(f"SELECT lower(hex(id)), duration_us FROM requests WHERE state = {State.HEALED}")
    assert sorted(found) == sorted((each[4:], None) for each in ids)
    assert causes(quiet.close_month()) == {"duplicate": 1}
    assert quiet.command("ledger", "check")["ok"]


def test_a_deleted_file_is_rebuilt_without_a_daemon(quiet: Books) -> None:
    """The file is made anew, and its figures are those of Lava's records."""
    quiet.recorded(quiet.send(3) + quiet.send(1, **{"x-emulator-fault": "record-unmetered"}))
    quiet.daemon.stop()
    quiet.path.unlink()
    billed = sum(each.cost for each in quiet.emulator.world.billing.records.values())
    healed = quiet.command("ledger", "heal")
    assert (healed["healed"], healed["billed_usd"]) == (4, f"{billed:.9f}")
    assert causes(quiet.close_month()) == {}
    rows = quiet.rows("SELECT r.state, billed, bill FROM requests r JOIN attempts ON request = seq ORDER BY bill")
    assert [(state, bill) for state, _, bill in rows] == [
        *[(State.HEALED, Bill.COMPLETED)] * 3,
        (State.HEALED, Bill.UNMETERED),
    ]
    assert sum(nano or 0 for _, nano, _ in rows) == int(billed * 10**9)
    (sums,) = quiet.command("stats")["groups"]
    assert (sums["requests"], sums["billed_usd"]) == (4, f"{billed:.9f}")
    assert quiet.command("ledger", "check")["ok"]


PROJECTS = """
[projects.plain]
keys = ["env:PLAIN"]
[projects.own]
keys = ["env:OWN"]
secret_key = "env:OWN_KEY"
byok = {openai = "env:PROVIDER"}
[projects.keyless]
keys = ["env:KEYLESS"]
spend_key = "env:SPEND"
"""
NAMES = ("plain", "own", "keyless")


def several(emulator: Emulator, own_key: str) -> dict[str, str]:
    """The environment of ``PROJECTS``."""
    keys = {name.upper(): f"local-key-of-{name}" for name in NAMES}
    return keys | {
        "OWN_KEY": own_key,
        "SPEND": emulator.world.keys.spend_keys["openai"],
        "PROVIDER": "own-key-of-the-provider-0123456789",
    }


def send_from(books: Books, name: str, count: int, **headers: str) -> list[str]:
    """Send chats from a project of ``PROJECTS``."""
    return books.send(count, authorization=f"Bearer {books.env[name.upper()]}", **headers)


def test_two_accounts_have_a_book_each(daemon: StartDaemon, emulator: Emulator, tmp_path: Path) -> None:
    """What Lava has no record of stands in one of them; a phantom is named in the account that has it."""
    world = emulator.world
    assert world.sandbox is not None
    books = Books(daemon, emulator, tmp_path, QUIET + PROJECTS, env=several(emulator, world.keys.test_key))
    for name, count in (("plain", 2), ("own", 3)):
        books.recorded(send_from(books, name, count) + send_from(books, name, 1, **{"x-emulator-fault": "record-lost"}))
    document = books.close_month()
    found = [(each["here"]["billed"], each["here"]["requests"]) for each in document["accounts"]]
    assert found == [(2, 3), (3, 4)]
    for account in document["accounts"]:
        assert {each["cause"]: each["requests"] for each in account["differences"]} == {
            "lost": 1,
            "charged_unrecorded": 1,
        }
    real = next(iter(world.sandbox.billing.records.values()))
    planted = StoredRequest("req_planted", "completed", "openai", real.endpoint, real.created_at)
    planted.cost = planted.charge = Decimal("0.125")
    world.sandbox.billing.add(planted, 100)
    document = books.close_month(code=1)
    assert [len(each["phantoms"]) for each in document["accounts"]] == [0, 1]
    assert (document["unexplained_requests"], document["unexplained_usd"]) == (1, "0.125000000")


@pytest.mark.full
def test_two_keys_of_one_account(daemon: StartDaemon, emulator: Emulator, tmp_path: Path) -> None:
    """Each of them sees all records. Those of a spend key and of a provider's own key are joined, too."""
    issued = IssuedKey("key_own", "Own", "aks_live_" + "0wn" * 10, 0.0)
    emulator.world.keys.secret_key_records.append(issued)
    books = Books(daemon, emulator, tmp_path, QUIET + PROJECTS, env=several(emulator, issued.key))
    for count, name in enumerate(NAMES, 1):
        books.recorded(send_from(books, name, count))
    document = books.close_month()
    assert document["closed"]
    assert [each["here"]["billed"] for each in document["accounts"]] == [4, 2]
    assert [
        {each["cause"]: each["requests"] for each in account["differences"]} for account in document["accounts"]
    ] == [{"elsewhere_booked": 2}, {"elsewhere_booked": 4}]


@pytest.mark.full
def test_a_project_may_be_renamed(daemon: StartDaemon, emulator: Emulator, tmp_path: Path) -> None:
    """With one account, the requests of the former name stay in its books."""
    first = '[projects.first]\nkeys = ["env:PLAIN"]\n'
    books = Books(daemon, emulator, tmp_path, QUIET + first, env={"PLAIN": "local-key-of-plain"})
    books.recorded(send_from(books, "plain", 2) + send_from(books, "plain", 1, **{"x-emulator-fault": "record-lost"}))
    books.daemon.stop()
    books.start(QUIET + first.replace("first", "second"))
    books.recorded(send_from(books, "plain", 1))
    document = books.close_month()
    assert causes(document) == {"lost": 1, "charged_unrecorded": 1}
    assert document["accounts"][0]["here"]["requests"] == 4


@pytest.mark.full
def test_lava_limits_the_calls(quiet: Books) -> None:
    """A list that was refused with 429 is read on when Lava says so, not from its beginning."""
    quiet.recorded(quiet.send(1))
    quiet.emulator.world.behaviour.account_faults = ["lava-429", "lava-500"]
    assert causes(quiet.close_month()) == {}


def test_records_of_other_programs_are_not_taken_in(quiet: Books) -> None:
    """Unless everything is asked for."""
    quiet.recorded(quiet.send(1))
    world = quiet.emulator.world
    real = next(iter(world.billing.records.values()))
    world.billing.add(StoredRequest("req_other", "completed", "openai", real.endpoint, real.created_at), 100)
    quiet.daemon.stop()
    assert quiet.command("ledger", "heal") == {
        "stored": True,
        "healed": 0,
        "billed_usd": "0.000000000",
        "without_our_id": 1,
    }
    assert quiet.command("ledger", "heal", "--all")["healed"] == 1
    assert causes(quiet.close_month()) == {}


def test_what_a_killed_daemon_was_doing_is_billed(quiet: Books) -> None:
    """Its request is interrupted, and Lava's record is joined with it."""

    def ask() -> None:
        with contextlib.suppress(OSError, AssertionError, ValueError, IndexError):
            quiet.send(1, **{"x-emulator-fault": "slow-5"})

    thread = threading.Thread(target=ask)
    thread.start()
    deadline = monotonic() + 20
    while not recorded(quiet.path):
        assert monotonic() < deadline
        sleep(0.02)
    quiet.daemon.process.send_signal(signal.SIGKILL)
    quiet.daemon.process.wait()
    thread.join()
    quiet.start(QUIET)
    quiet.recorded(quiet.send(1))
    quiet.daemon.stop()
    assert causes(quiet.close_month()) == {}
    assert quiet.rows("SELECT state, bill FROM requests JOIN attempts ON request = seq ORDER BY seq LIMIT 1") == [
        (State.INTERRUPTED, Bill.COMPLETED)
    ]
    assert quiet.command("ledger", "check")["ok"]


def test_without_a_key_there_is_nothing_to_compare(daemon: StartDaemon, emulator: Emulator, tmp_path: Path) -> None:
    spend = emulator.world.keys.spend_keys["openai"]
    started = daemon(
        f'[lava]\nbase_url = "{emulator.base_url}"\n[projects.a]\nspend_key = "env:SPEND"\n'
        f'[ledger]\npath = "{tmp_path}/ledger.sqlite"\n',
        env={"SPEND": spend},
    )
    post(started.port, "/v1/chat/completions", json.loads(CHAT))
    deadline = monotonic() + 20
    while not recorded(tmp_path / "ledger.sqlite"):
        assert monotonic() < deadline
        sleep(0.02)
    wait = run_command(["reconcile", "--config", str(started.config)], home=tmp_path, env={"SPEND": spend})
    assert wait.returncode == 1
    assert b"no project has a Lava secret key" in wait.stderr


def test_books_for_people(quiet: Books) -> None:
    """Tables, with the day, the causes and what is unexplained."""
    ids = quiet.send(2)
    for fault in ("record-doubled", "record-lost"):
        ids += quiet.send(1, **{"x-emulator-fault": fault})
    quiet.recorded(ids)
    config = ["--config", str(quiet.daemon.config), "--settled-after", "0s"]
    env = {"KEY": quiet.emulator.world.secret_key}
    month = f"{datetime.now(UTC):%Y-%m}"
    closed = run_command(["close", month, *config], home=quiet.folder, env=env)
    assert closed.returncode == 0, closed.stderr
    assert b"duplicate record at Lava" in closed.stdout
    assert b"Unexplained: 0 requests, $0.00." in closed.stdout
    compared = run_command(["reconcile", *config], home=quiet.folder, env=env)
    assert b"Duplicates at Lava" in compared.stdout
    (reason,) = [line for line in compared.stdout.splitlines() if line.endswith(b"has no record of it")]
    assert reason.split()[:2] == [f"{datetime.now(UTC):%Y-%m-%d}".encode(), b"1"]
    assert b"this was done on a copy" in compared.stdout
    wrong = run_command(["close", "2026-13", "--config", str(quiet.daemon.config)], home=quiet.folder, env=env)
    assert wrong.returncode == 2


# Reading the list, without a daemon


class Listed:
    """A ledger with calls, and Lava's records of them, at times of the test's choice."""

    def __init__(self, emulator: Emulator, folder: Path) -> None:
        self.world = emulator.world
        self.world.behaviour.biller.keep = 10**6
        self.place = Place(folder / "ledger.sqlite")
        self.store = self.place.store()
        settings = Settings.model_validate(
            {"lava": {"secret_key": self.world.secret_key, "base_url": emulator.base_url}, "ledger": {"path": "unused"}}
        )
        (self._account,) = accounts_of(settings)
        self._settings = settings

    def add(self, count: int, age: float, *, known_here: bool = True, listed_at: float = 0.0) -> list[StoredRequest]:
        """Add records, the oldest first, which is so many seconds old; five seconds between two."""
        made = []
        for number in range(count):
            created = time() - age + 5 * number
            one = StoredRequest(new_id("req_"), "completed", "openai", "POST https://api.openai.com/v1", created)
            one.cost, one.listed_at = Decimal("0.001"), listed_at
            self.world.billing.add(one, 10**6)
            made.append(one)
        if known_here:
            calls = [record(lava_request_id=each.request_id, started=monotonic() - age) for each in made]
            self.store.write(calls, again=False)
        return made

    def cycle(self, since: float = 86_400.0, on_page: Callable[[], object] = lambda: None) -> int:
        """Do what the daemon does. Return how many pages of the list it read."""
        engine = opening.sqlite_engine(self.place.settings.ledger.file())
        before = len(self.world.received)

        async def work(connection: Connection) -> None:
            async with self._account.client(self._settings) as lava:
                reconciler = Reconciler(lava, self._account, Direct(connection))
                await reconciler.cycle(int((time() - since) * 1e6), lambda progress: on_page())

        self.store.close()
        with engine.connect() as connection:
            asyncio.run(work(connection))
        new = list(self.world.received)[before:]
        return len([each for each in new if each.target.startswith("/v1/requests?") and "metadata" not in each.target])

    def undecided(self) -> int:
        (row,) = self.place.rows("SELECT count(*) AS number FROM attempts WHERE bill = 1")
        return int(row["number"])


@pytest.fixture
def listed(emulator: Emulator, tmp_path: Path) -> Iterator[Listed]:
    made = Listed(emulator, tmp_path)
    yield made
    made.place.close()


def test_the_first_reading_is_bounded(listed: Listed) -> None:
    """By ``reconcile_since``: an old account may have a million records. Later ones end at what is known."""
    listed.add(500, 10 * 86_400, known_here=False)
    listed.add(250, 3600)
    assert listed.cycle() == 3
    assert listed.undecided() == 0
    listed.add(20, 200)
    assert listed.cycle() == 2
    assert listed.undecided() == 0


def test_records_that_are_added_meanwhile_are_read_next_time(listed: Listed) -> None:
    """They come at the front of the list, whose cursor stays right."""
    listed.add(250, 3600)
    added = iter([True])

    def add() -> None:
        if next(added, False):
            listed.add(120, 620)

    assert listed.cycle(on_page=add) == 3
    assert listed.undecided() == 0  # asked for, each by itself
    assert len([each for each in listed.world.received if each.target.startswith("/v1/requests/")]) == 120
    listed.add(1, 1)
    assert listed.cycle() == 2
    assert listed.undecided() == 0


def test_a_record_that_comes_late_into_the_list_is_asked_for(listed: Listed) -> None:
    """Behind many that are known: a list that is read to those does not show it."""
    (late,) = listed.add(1, 3000, listed_at=time() + 3600)
    listed.add(450, 2900)
    assert listed.cycle() == 5
    assert listed.undecided() == 1
    late.listed_at = 0.0
    assert listed.cycle() == 1
    assert listed.undecided() == 0
    assert listed.place.rows("SELECT count(*) AS number FROM attempts WHERE bill = 2") == [{"number": 451}]


# Several daemons


@pytest.mark.postgres
def test_one_of_several_daemons_reconciles(
    daemon: StartDaemon, emulator: Emulator, tmp_path: Path, postgres_server: Server
) -> None:
    """The other one does when it is killed. Commands book beside them, and nothing is booked twice."""
    url = postgres_server.new_database()
    books = Books(daemon, emulator, tmp_path, "reconcile_seconds = 0.2\n", url=url)
    place = Place(url=url)

    def wait_for(statement: str, value: object) -> None:
        deadline = monotonic() + 30
        while place.rows(statement) != [{"found": value}]:
            assert monotonic() < deadline, books.daemon.output()
            sleep(0.05)

    def billed(count: int) -> None:
        wait_for("SELECT to_regclass('attempts') IS NOT NULL AS found", True)
        wait_for("SELECT count(*) AS found FROM attempts WHERE bill = 2", count)

    books.send(5)
    billed(5)
    first = books.daemon
    books.start("reconcile_seconds = 0.2\n")
    books.send(5)
    billed(10)
    locks = "SELECT count(*) AS number FROM pg_locks WHERE locktype = 'advisory' AND classid = 5282 AND objid = 4"
    assert place.rows(locks) == [{"number": 1}]
    closing = [threading.Thread(target=books.close_month) for _ in range(3)]
    books.send(20)
    for each in closing:
        each.start()
    for each in closing:
        each.join()
    billed(30)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    books.send(5)
    billed(35)
    assert place.rows(locks) == [{"number": 1}]
    assert books.command("ledger", "check")["ok"]
    assert causes(books.close_month()) == {}


def test_bills_become_the_estimates(books: Books) -> None:
    """Five bills teach the price of a model; the tables are used before. A change is reported once; a restart forgets nothing."""
    biller = books.emulator.world.behaviour.biller
    sizes = iter(range(1, 1000))

    def send(count: int) -> None:
        """Send chats of different sizes, and wait until they are billed."""
        before = len(recorded(books.path))
        ids = set()
        for _ in range(count):
            chat = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "word " * 7 * next(sizes)}]}
            response = post(books.daemon.port, "/v1/chat/completions", chat)
            ids.add(response.header("x-lava-proxy-request-id") or "")
        wait_until_recorded(books.path, ids)
        deadline = monotonic() + 20
        while books.rows("SELECT count(*) FROM attempts WHERE bill = 2") != [(before + count,)]:
            assert monotonic() < deadline, books.daemon.output()
            sleep(0.05)

    def last() -> tuple[str, bool]:
        """Where the last estimate came from, and whether it is the bill."""
        [(source, equal)] = books.rows(
            "SELECT n.text, a.estimated = a.billed FROM attempts a JOIN names n ON n.id = a.prices ORDER BY a.request DESC LIMIT 1"
        )
        return source.partition(" ")[0], bool(equal)

    send(6)
    assert last() == ("genai-prices", False)
    send(1)
    assert last() == ("learned", True)
    biller.set_prices(TokenPrices(Decimal("0.0000015"), output=Decimal("0.000006")))
    send(11)
    send(1)
    assert last() == ("learned", True)
    assert books.daemon.output().count("openai/gpt-4o-mini: its last 10 bills are 50.0 % above the price") == 1
    books.daemon.stop()
    books.start("reconcile_seconds = 0.5\n")
    send(1)
    assert last() == ("learned", True)
