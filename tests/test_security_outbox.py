"""The outbox: usage is reported once, whatever happens to the process, to Lava, or to the letters."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any, Self

import pytest
from daemons import clean_environment, run_command
from ledgers import record, recorded, rows_of
from outbox_child import POINTS
from ports import free_port
from rawclient import Response, post
from security_stand import FULL, case

from proxy.config.settings import Settings
from proxy.emulator import Emulator
from proxy.lava.errors import TimedOut
from proxy.ledger import books, outbox, outbox_rows, queries, upkeep
from proxy.ledger.accounts import accounts_of
from proxy.ledger.books import Cause, Period
from proxy.ledger.columns import Bill, OutboxState
from proxy.ledger.delivery import MAX_TRIES, Delivery
from proxy.ledger.delivery import pause as delivery_pause
from proxy.ledger.outbox import Outbox, OutboxStatus
from proxy.ledger.outbox_rows import Waiting
from proxy.ledger.reconcile import Reconciler
from proxy.ledger.rows import request_id_of
from proxy.ledger.writer import Ledger
from proxy.protocol.headers import PROXY_ID
from proxy.protocol.record import Attempt, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from daemons import StartDaemon
    from postgres import Server
    from sqlalchemy import Connection

    from proxy.emulator.biller import Repeated

CHILD = Path(__file__).with_name("outbox_child.py")


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test."""

    @functools.wraps(test)
    def wrapped(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return wrapped


class OutboxStand:
    """An emulator that bills, and the file of a ledger."""

    def __init__(self, emulator: Emulator, folder: Path) -> None:
        self.emulator = emulator
        self.path = folder / "ledger.sqlite"

    def run(self, point: str = "none", count: int = 0, limit: float = 20.0) -> str:
        """Run the process to its end. Return what it printed; it must have died if it should."""
        process = self.start(point, count, limit)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (0 if point == "none" else -signal.SIGKILL), err
        return str(out)

    def start(self, point: str = "none", count: int = 0, limit: float = 20.0) -> Any:
        env = clean_environment(self.path.parent, {"KEY": self.emulator.world.secret_key})
        env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(CHILD.parent)])
        words = [sys.executable, str(CHILD), str(self.path), self.emulator.base_url, point, str(count), str(limit)]
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def billed(self) -> list[str]:
        """The ids of the reported records, one for each time something was billed."""
        return [each.request_id for each in self.emulator.world.billing.records.values() if each.reported]

    def states(self) -> list[int]:
        return [state for (state,) in rows_of(self.path, "SELECT state FROM outbox ORDER BY seq")]

    def ids(self, state: OutboxState) -> set[str]:
        """The ids of the requests in this state."""
        rows = rows_of(self.path, f"SELECT lower(hex(id)) FROM outbox WHERE state = {int(state)}")
        return {f"req_{each}" for (each,) in rows}


@pytest.fixture
def stand(request: pytest.FixtureRequest, emulator: Emulator, tmp_path: Path) -> OutboxStand:
    """The parameter is the name of the case."""
    return OutboxStand(emulator, tmp_path)


BEFORE, INTENT, AFTER_MARK = POINTS[:1], POINTS[1:3], POINTS[5:7]
"""Points where nothing is stored, where an intent is (what its call used is not known), and where Lava is asked afterwards."""
CASES = [
    pytest.param(
        point, repeated, id=f"{point}, {repeated}", marks=() if (point, repeated) in QUICK else pytest.mark.full
    )
    for QUICK in [{("after the intent", "conflict"), ("after the call", "twice")}]
    for point in POINTS
    for repeated in (("conflict", "first", "twice") if point in POINTS[4:] else ("conflict",))
]


@case("LIF-10")
@pytest.mark.parametrize(("point", "repeated"), CASES)
def test_a_process_that_is_killed_bills_once(stand: OutboxStand, point: str, repeated: Repeated) -> None:
    """At each step, whatever Lava does with a repeated id: not lost, and not billed twice."""
    stand.emulator.world.behaviour.biller.repeated = repeated
    stand.run(point, 1)
    assert stand.run() == "empty\n"
    calls = [each.method for each in stand.emulator.world.received]
    if point in AFTER_MARK:
        assert calls == (["POST", "GET"] if point == "after the call" else ["GET", "POST"])
    if point in BEFORE:
        assert (stand.states(), stand.billed()) == ([], [])
    elif point in INTENT:
        assert (stand.states(), stand.billed()) == ([OutboxState.DEAD], [])
    else:
        assert stand.states() == []
        assert len(stand.billed()) == 1


@case("LIF-09")
def test_random_kills_lose_no_committed_usage(stand: OutboxStand) -> None:
    """Under load, at random moments: every committed usage record is billed, once; every intent is a dead letter."""
    stand.emulator.world.behaviour.biller.keep = 10**9
    choose = random.Random(20_261_129).uniform
    committed: set[str] = set()
    intents: set[str] = set()
    for number in range(200 if FULL else 4):
        before = len(recorded(stand.path)) if stand.path.exists() else 0
        process = stand.start(count=100_000)
        if number % 2:
            sleep(choose(0.2, 1.5))
        else:
            wait_until(lambda: stand.path.exists() and len(recorded(stand.path)) > before)  # noqa: B023
            sleep(choose(0.0, 0.7))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        committed |= stand.ids(OutboxState.READY)
        intents |= stand.ids(OutboxState.INTENT)
    assert stand.run() == "empty\n"
    billed = stand.billed()
    assert len(billed) == len(set(billed))
    assert committed
    assert committed <= set(billed)
    assert stand.ids(OutboxState.DEAD) == intents
    assert not intents & set(billed)


_REPORTS = """
import proxy.gateway.template as template
_init = template.Prepared.__init__
def _reports(self, *arguments, **options):
    _init(self, *arguments, **options)
    self.report_usage = True
template.Prepared.__init__ = _reports
"""
"""A daemon all of whose requests are reported: providers that need it come later."""


class SmallDisk:
    """A file system of a megabyte, which can be filled: again and again, because a checkpoint gives room back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filling = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir()
        options = ["-t", "tmpfs", "-o", "size=1m,mode=0700"]
        subprocess.run(["mount", *options, "tmpfs", str(self.folder)], check=True, timeout=10)
        return self

    def __exit__(self, *exception: object) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True, timeout=10)

    def fill(self) -> None:
        self._filling.set()
        self._thread.start()

    def empty(self) -> None:
        self._filling.clear()
        self._thread.join()
        (self.folder / "filler").unlink()

    def _fill(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            while self._filling.is_set():
                try:
                    filler.write(bytes(512))
                except OSError:
                    sleep(0.001)


@case("LIF-12")
@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a file system")
def test_a_full_disk_refuses_what_it_cannot_bill(stand: OutboxStand, daemon: StartDaemon) -> None:
    """503 for new requests, of which nothing is sent; a stream goes on; served again without a restart, and all billed."""
    world = stand.emulator.world
    folder = stand.path.parent / "patch"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_REPORTS)
    path = os.pathsep.join([str(folder), clean_environment(folder)["PYTHONPATH"]])
    with SmallDisk(stand.path.parent / "small") as disk:
        stand.path = disk.folder / "ledger.sqlite"
        running = daemon(
            f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{stand.emulator.base_url}"\n'
            '[projects.website]\ncustomer_id = "conn_demo"\nmeter = "demo-chat"\n'
            f'[ledger]\npath = "{stand.path}"\nreconcile = false\n',
            env={"KEY": world.secret_key, "PYTHONPATH": path},
            secrets=[world.secret_key],
        )
        chat = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}

        def ask(**more: Any) -> Response:
            return post(running.port, "/v1/chat/completions", chat | more)

        wait_until(lambda: ask().status == 200)
        wait_until(lambda: len(recorded(stand.path)) >= 1)
        world.behaviour.pace = 0.2
        streams: list[Response] = []
        thread = threading.Thread(target=lambda: streams.append(ask(stream=True)))
        thread.start()
        wait_until(lambda: any(b"stream" in each.body for each in world.received))
        disk.fill()
        wait_until(lambda: ask().code == "ledger_unavailable")
        refused = None
        while refused is None or refused.status != 503:
            asked = len([each for each in world.received if each.url is not None])
            refused = ask()
        assert (refused.code, refused.header("retry-after")) == ("ledger_unavailable", "2")
        assert refused.json()["error"]["code"] == "ledger_unavailable"
        assert len([each for each in world.received if each.url is not None]) == asked
        assert running.get("/readyz") == 200
        thread.join()
        (stream,) = streams
        assert stream.complete
        assert stream.body.endswith(b"data: [DONE]\n\n")
        disk.empty()
        wait_until(lambda: ask().status == 200)
        sent = len([each for each in world.received if each.url is not None])
        wait_until(lambda: len(stand.billed()) + len(stand.ids(OutboxState.DEAD)) == sent)
        assert len(set(stand.billed())) == len(stand.billed()) >= 2
        assert stand.ids(OutboxState.INTENT) == set()
        assert running.stop() == 0


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline
        sleep(0.02)


class InProcess:
    """A ledger and its outbox in this process, whose letters go to ``url``. ``shared`` is the address of a PostgreSQL."""

    def __init__(self, stand: OutboxStand, url: str | None = None, shared: str | None = None) -> None:
        self.stand = stand
        self.said: list[str] = []
        self.count = 0
        projects = {name: {"customer_id": "conn_demo", "meter": "demo-chat"} for name in ("website", "other")}
        self.settings = Settings.model_validate(
            {
                "lava": {"secret_key": stand.emulator.world.secret_key, "base_url": url or stand.emulator.base_url},
                "ledger": {"path": str(stand.path)} if shared is None else {"url": shared},
                "projects": projects,
            }
        )

    async def __aenter__(self) -> Self:
        self.ledger = Ledger(self.settings, self)
        self.outbox = Outbox(self.ledger, lambda: self.settings)
        self.delivery = Delivery(self.ledger, lambda: self.settings, lambda account: None, self.info)
        self.ledger.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.outbox.aclose()
        await self.ledger.aclose()

    def info(self, event: str) -> None:
        self.said.append(event)

    warning = info

    async def requests(self, count: int, **fields: Any) -> list[str]:
        """Record requests with their intents, as the gateway does. Return their ids."""
        made = []
        for _ in range(count):
            one = record(outcome=None, **fields)
            await self.outbox.begin(one)
            one.outcome = Outcome.OK
            self.ledger.observe(one)
            made.append(one.request_id)
        self.count += count
        await _until(lambda: self.ledger.status().written == self.count)
        return made

    async def make_due(self) -> None:
        """Let the time pass that letters wait for."""
        await self.ledger.run(lambda connection: connection.exec_driver_sql("UPDATE outbox SET next_us = 0"))
        self.delivery._held = {}

    async def waiting(self) -> Waiting:
        return await self.ledger.run(outbox_rows.waiting)

    async def dead(self) -> list[str | None]:
        """The reasons of the dead letters."""
        letters = await self.ledger.run(queries.dead_letters)
        return [each.problem for each in letters]


@case("LIF-20")
@pytest.mark.parametrize("repeated", ["conflict", "first", "twice"])
@in_loop
async def test_a_report_that_timed_out_is_asked_for(stand: OutboxStand, repeated: Repeated) -> None:
    """It was applied, and its answer never came: asked for before it is repeated."""
    stand.emulator.world.behaviour.biller.repeated = repeated
    lost = iter([True])

    class Forgetful:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def send(self, method: str, *rest: Any) -> Any:
            reply = await self.inner.send(method, *rest)
            if method == "POST" and next(lost, False):
                raise TimedOut("no answer in time", sent=True)
            return reply

    async with InProcess(stand) as process:
        client = accounts_of(process.settings)[0].client(process.settings)
        process.delivery._sender = lambda account: Forgetful(client._transport)
        made = await process.requests(3)
        pause = await process.delivery.deliver()
        assert pause is not None
        assert 0 < pause <= 5
        assert stand.billed() == made[:1]
        await process.make_due()
        await process.delivery.deliver()
        assert stand.billed() == made
        assert await process.waiting() == Waiting(0, 0, 0)
        await client.aclose()


@case("LIF-19")
@in_loop
async def test_a_letter_that_is_refused_holds_no_other(stand: OutboxStand) -> None:
    """Refused eight times it is a dead letter, which is counted, listed, and can be replayed."""
    async with InProcess(stand) as process:
        poison = await process.requests(2)
        await process.ledger.run(
            lambda connection: connection.exec_driver_sql(
                "UPDATE outbox SET body = replace(body, 'conn_demo', 'conn_gone')"
            )
        )
        good = await process.requests(3)
        other = await process.requests(1, project="other")
        for tries in range(1, MAX_TRIES + 1):
            await process.delivery.deliver()
            assert stand.billed() == [*good, *other], tries
            assert len(await process.dead()) == (2 if tries == MAX_TRIES else 0)
            await process.make_due()
        assert [(each or "").partition(":")[0] for each in await process.dead()] == ["refused 8 times"] * 2
        process.outbox.start()
        await _until(lambda: process.outbox.status == OutboxStatus(0, 2))
        assert any("2 usage records cannot be reported" in each for each in process.said)
        await process.ledger.run(
            lambda connection: connection.exec_driver_sql(
                "UPDATE outbox SET body = replace(body, 'conn_gone', 'conn_demo')"
            )
        )
        await process.outbox.aclose()
        await process.ledger.aclose()
    with upkeep.writing(process.settings.ledger) as connection:
        assert upkeep.replay(connection, None) == 2
    assert stand.run() == "empty\n"
    assert sorted(stand.billed()) == sorted([*poison, *good, *other])


@case("LIF-18")
@in_loop
async def test_a_lava_that_is_away_for_a_day(stand: OutboxStand) -> None:
    """A million letters: the memory stays bounded, nothing is tried in a rush, and then they go out in their order."""
    count = 1_000_000 if FULL else 20_000
    port = free_port()
    async with InProcess(stand, f"http://127.0.0.1:{port}/v1") as process:
        await process.requests(2)
        await process.ledger.run(lambda connection: _fill(connection, count))
        tracemalloc.start()
        pauses = []
        for _ in range(20):
            held = process.delivery._held
            await process.make_due()
            process.delivery._held = {scope: each._replace(until=0.0) for scope, each in held.items()}
            pause = await process.delivery.deliver()
            assert pause is not None
            pauses.append(pause)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8_000_000
        assert all(each <= 300 for each in pauses)
        assert pauses[-1] >= 150
        assert len(set(pauses)) == len(pauses)
        assert (await process.waiting()).ready == count + 2
        assert len([each for each in process.said if "waits in the outbox" in each]) == 1
        first = await process.ledger.run(_first_letters)
        with Emulator(stand.emulator.world, port=port):
            await process.make_due()
            delivering = asyncio.create_task(process.delivery.deliver())
            await _until(lambda: len(stand.billed()) >= 100)
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)
        assert stand.billed()[:100] == first[:100]


def test_pauses_grow_to_five_minutes() -> None:
    """5, 10, 20 … 300 seconds, of which a random half to all; longer if Lava asks for it."""
    assert [delivery_pause(failures, 1.0) for failures in (1, 2, 3, 7, 8, 300)] == [5, 10, 20, 300, 300, 300]
    assert delivery_pause(1, 0.0) == 2.5
    assert delivery_pause(1, 0.0, 60.0) == 60
    assert delivery_pause(1, 0.0, 7200.0) == 300


@in_loop
async def test_an_answer_with_other_numbers_is_a_dead_letter(stand: OutboxStand) -> None:
    """Lava has the id already, from something else."""
    stand.emulator.world.behaviour.biller.repeated = "first"
    async with InProcess(stand) as process:
        (request,) = await process.requests(1)
        async with accounts_of(process.settings)[0].client(process.settings) as lava:
            await lava.requests.create(
                request_id=request, meter_slug="demo-chat", customer_id="conn_demo", input_tokens=1, output_tokens=5
            )
        await process.delivery.deliver()
        assert await process.dead() == ["Lava has this id with other numbers: input_tokens is 1, not 10"]


@in_loop
async def test_what_is_reported_is_joined_with_its_request(stand: OutboxStand) -> None:
    """Lava's record has our id, and its cost is the request's; what could not be reported stays visible in the books."""
    async with InProcess(stand) as process:
        made = await process.requests(3, lava_request_id=None)
        await process.requests(1, lava_request_id=None, usage="null")
        await process.delivery.deliver()
        (account,) = accounts_of(process.settings)
        assert {each.metadata[PROXY_ID] for each in stand.emulator.world.billing.records.values()} == set(made)
        async with account.client(process.settings) as lava:
            reconciler = Reconciler(lava, account, process.ledger)
            now = int(time() * 1e6)
            compared = await books.compare(reconciler, Period(0, now), missing_before_us=now)
            found = await books.balance(reconciler, process.ledger, compared, missing_before_us=now)
        assert [(each.cause, each.amount.requests) for each in found.differences] == [(Cause.UNREPORTED, 1)]
        assert found.unexplained.requests == 1
    assert rows_of(stand.path, "SELECT bill FROM attempts ORDER BY request") == [
        *[(Bill.COMPLETED,)] * 3,
        (Bill.MISSING,),
    ]


@in_loop
async def test_a_clock_that_is_set_back_holds_no_letter(stand: OutboxStand) -> None:
    """What waits until a time that is a day away by now is due; what waits for some minutes is not."""
    async with InProcess(stand) as process:
        made = await process.requests(2)
        for seconds, billed in ((290, []), (86_400, made)):
            until = int((time() + seconds) * 1e6)
            await process.ledger.run(
                lambda connection: connection.exec_driver_sql(f"UPDATE outbox SET next_us = {until}")  # noqa: B023
            )
            await process.delivery.deliver()
            assert stand.billed() == billed


@in_loop
async def test_a_project_with_many_letters_holds_no_other(stand: OutboxStand) -> None:
    """A page of each project in turn; within a project in order."""
    async with InProcess(stand) as process:
        many = await process.requests(outbox_rows.PAGE * 3)
        few = await process.requests(2, project="other")
        await process.delivery.deliver()
        billed = stand.billed()
        assert [each for each in billed if each not in few] == many
        assert billed.index(few[-1]) < outbox_rows.PAGE + 2


@in_loop
async def test_faults_of_lava_are_no_refusals(stand: OutboxStand) -> None:
    """A letter that waited through many of them has all of its eight tries left, and asks first."""
    async with InProcess(stand) as process:
        await process.requests(1)
        stand.emulator.world.behaviour.account_faults = ["lava-500"] * (MAX_TRIES + 1)
        for _ in range(MAX_TRIES + 1):
            await process.delivery.deliver()
            await process.make_due()
        await process.ledger.run(
            lambda connection: connection.exec_driver_sql(
                "UPDATE outbox SET body = replace(body, 'conn_demo', 'conn_gone')"
            )
        )
        await process.delivery.deliver()
        assert await process.waiting() == Waiting(0, 1, 0)
        assert stand.billed() == []


@in_loop
async def test_a_letter_without_usage_is_not_replayed(stand: OutboxStand) -> None:
    """It would be billed as nothing. The command says so, and which are left."""
    async with InProcess(stand) as process:
        await process.requests(1, usage="null")
        await process.requests(1)
        await process.ledger.run(lambda connection: connection.exec_driver_sql("UPDATE outbox SET state = 2"))
        unknown, known = await process.ledger.run(queries.dead_letters)
        assert (unknown.known, known.known) == (False, True)
    config = stand.path.parent / "config.toml"
    config.write_text(f'[ledger]\npath = "{stand.path}"\n')
    config.chmod(0o600)

    def replay(*words: str) -> Any:
        words = ("ledger", "dead-letters", "replay", *words, "--config", str(config))
        return run_command(words, home=stand.path.parent)

    one = replay(unknown.id)
    assert one.returncode == 1
    assert b"what it used is not known" in one.stderr
    every = replay("--all")
    assert every.returncode == 0, every.stderr
    assert b"1 dead letter will be delivered again" in every.stdout
    assert b"1 dead letter left" in every.stdout
    assert stand.ids(OutboxState.READY) == {known.id}


@pytest.mark.postgres
@in_loop
async def test_the_intents_of_a_dead_daemon_are_found(
    stand: OutboxStand, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another one on the same PostgreSQL, when the lease ends; letters are delivered by one of them."""
    for name in ("START_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(outbox, name, 0.2)
    url = postgres_server.new_database()
    async with InProcess(stand, shared=url) as other:
        async with InProcess(stand, shared=url) as dying:
            made = await dying.requests(3)
            await dying.outbox.begin(record(outcome=None))
            other.outbox.start()
            await _until(lambda: len(stand.billed()) == 3)
            dying.outbox.start()
            made += await dying.requests(3)
            await _until(lambda: len(stand.billed()) == 6)
            assert sorted(stand.billed()) == sorted(made)
            while await other.waiting() != Waiting(1, 0, 0):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        ended = f"UPDATE meta SET value = '0' WHERE name = 'daemon {dying.ledger.daemon}'"
        await other.ledger.run(lambda connection: connection.exec_driver_sql(ended))
        await _until(lambda: other.outbox.status == OutboxStatus(0, 1))
        assert await other.dead() == ["the daemon ended during the request: what it used is not known"]


@in_loop
async def test_an_intent_of_a_daemon_taken_for_dead_is_completed(stand: OutboxStand) -> None:
    """It was cut off from the database, and has its usage after all."""
    async with InProcess(stand) as process:
        one = record(outcome=None)
        await process.outbox.begin(one)
        assert await process.ledger.run(lambda connection: outbox_rows.recover(connection, "another")) == 1
        assert await process.waiting() == Waiting(0, 0, 1)
        one.outcome = Outcome.OK
        process.ledger.observe(one)
        await _until(lambda: process.ledger.status().written == 1)
        await process.delivery.deliver()
        assert stand.billed() == [one.request_id]


@in_loop
async def test_letters_go_out_in_order_and_with_their_id(stand: OutboxStand) -> None:
    """The id of the request is the idempotency key, too; what was not sent has used nothing."""
    async with InProcess(stand) as process:
        made = await process.requests(120)
        await process.requests(1, sent=False)
        await process.delivery.deliver()
        assert stand.billed() == made
        assert await process.waiting() == Waiting(0, 0, 0)
    posts = [each for each in stand.emulator.world.received if each.method == "POST"]
    assert [each.header("idempotency-key") for each in posts] == made


@in_loop
async def test_usage_that_is_not_known_is_a_dead_letter(stand: OutboxStand) -> None:
    """It is neither billed as nothing, nor lost."""
    async with InProcess(stand) as process:
        await process.requests(1, usage="null")
        await process.requests(1, scanner=None, status=None, attempts=[Attempt("openai", "m", 0.0)])
        await process.requests(1, status=500, attempts=[Attempt("openai", "m", 0.0, status=500)])
        assert await process.dead() == [
            "the answer does not say what it used",
            "no answer came: what it used is not known",
        ]
        assert await process.waiting() == Waiting(0, 0, 2)


async def _until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline
        await asyncio.sleep(0.01)


def _fill(connection: Connection, count: int) -> None:
    """Copy the last letter."""
    connection.exec_driver_sql(
        "INSERT INTO outbox (id, project, created_us, state, body) WITH RECURSIVE number(n) AS "
        f"(SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {count}) "
        "SELECT randomblob(12), project, created_us, 1, body FROM number, (SELECT * FROM outbox ORDER BY seq DESC LIMIT 1)"
    )


def _first_letters(connection: Connection) -> list[str]:
    rows = connection.exec_driver_sql("SELECT id FROM outbox ORDER BY seq LIMIT 200").scalars()
    return [request_id_of(bytes(each)) for each in rows]
