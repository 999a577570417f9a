"""One budget for two daemons on one PostgreSQL."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from configurations import LAVA_KEY
from ledgers import wait_for_output
from rawclient import RawClient, ask
from upstream import Peer, Upstream, answer

from proxy.ledger.budgeting import EXTEND_SECONDS
from proxy.ledger.leases import LEASE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemons import Daemon, StartDaemon
    from postgres import Server

pytestmark = pytest.mark.postgres

JSON = {"Content-Type": "application/json"}
TYPE = [(b"content-type", b"application/json")]
USAGE = (
    b'{"id":"x","object":"chat.completion","model":"gpt-4o","usage":{"prompt_tokens":10,"completion_tokens":5,'
    b'"total_tokens":15}}'
)
LIMIT = 30


def _say(peer: Peer) -> None:
    """Answer; what says "wait" is never answered, what says "cut" loses its connection."""
    while (received := peer.request()) is not None:
        if b"wait" in received.body:
            peer.request()
            return
        if b"cut" in received.body:
            return
        if b"fail" in received.body:
            peer.send(answer(400, b'{"error":{"message":"no","type":"invalid_request_error","param":null}}', TYPE))
        else:
            peer.send(answer(200, USAGE, TYPE))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(_say) as made:
        yield made


class Shared:
    """Daemons with budgets on one database."""

    def __init__(self, daemon: StartDaemon, upstream: Upstream, url: str) -> None:
        self._daemon = daemon
        self._upstream = upstream
        self._url = url

    def start(self, budget: str) -> Daemon:
        return self._daemon(
            f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{self._upstream.url}"\n[ledger]\nurl = "{self._url}"\n'
            f'[projects.main.budget]\ntimezone = "UTC"\n{budget}\n',
            env={"KEY": LAVA_KEY},
            secrets=[LAVA_KEY],
        )

    def pair(self, budget: str) -> tuple[Daemon, Daemon]:
        return self.start(budget), self.start(budget)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No request is admitted meanwhile, as if another daemon hung in the middle of it."""
        import psycopg

        with psycopg.connect(self._url.replace("+psycopg", "")) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(5283, id) FROM names WHERE kind = 1")
            yield

    def count(self, rows: str) -> int:
        """How many rows there are: ``holds WHERE …``."""
        import psycopg

        with psycopg.connect(self._url.replace("+psycopg", "")) as connection:
            return int(connection.execute(f"SELECT count(*) FROM {rows}".encode()).fetchall()[0][0])


@pytest.fixture
def shared(daemon: StartDaemon, upstream: Upstream, postgres_server: Server) -> Shared:
    return Shared(daemon, upstream, postgres_server.new_database())


def _body(content: str, most: int = 20) -> bytes:
    return b'{"model":"gpt-4o","messages":[{"role":"user","content":"%s"}],"max_tokens":%d}' % (content.encode(), most)


def _ask(running: Daemon, content: str = "hello", most: int = 20) -> Any:
    return ask(running.port, "POST", "/v1/chat/completions", _body(content, most), JSON)


def _ours(answered: Any) -> dict[str, Any]:
    found: dict[str, Any] = answered.json()["error"]["lava_proxy"]
    return found


def _send(client: RawClient, body: bytes) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Type: application/json\r\n"
    client.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def _until(condition: Callable[[], bool], seconds: float = LIMIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_hundred_agents_at_two_daemons_get_what_there_is_room_for(shared: Shared, upstream: Upstream) -> None:
    """Forty of a hundred, never more and never fewer; both daemons know it, and nothing is held afterwards."""
    both = shared.pair("requests = { month = 40 }")
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda number: _ask(both[number % 2]), range(100)))
    assert sorted(each.status for each in answers) == [200] * 40 + [429] * 60
    assert len(upstream.requests) == 40
    _until(lambda: shared.count("holds") == 0)  # a hold goes with the row of its request, just after the answer
    for each in both:
        refused = _ask(each)
        assert [_ours(refused)[name] for name in ("limit", "used", "held")] == [40, 40, 0]
        assert refused.header("x-lava-proxy-budget-left") == "requests per month 0"
    assert shared.count("holds") == 0


@pytest.mark.parametrize("unit", ["tokens", "usd"])
def test_two_daemons_never_use_more_than_the_limit(shared: Shared, unit: str) -> None:
    """Of tokens, and of dollars by the prices that the budget counts with: 2.50 per million in, 10 out."""
    size = len(_body("hello"))
    most = 10 * (size + 20) if unit == "tokens" else 10 * (size * 2500 + 20 * 10_000)
    limit = f"tokens = {{ month = {most} }}" if unit == "tokens" else f'usd = {{ month = "{most / 1e9:.9f}" }}'
    both = shared.pair(f"{limit}\nstrict = true")
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda number: _ask(both[number % 2]), range(60)))
    served = [each.json()["usage"] for each in answers if each.status == 200]
    assert 10 <= len(served) < 60
    prices = (1, 1) if unit == "tokens" else (2500, 10_000)
    assert sum(each["prompt_tokens"] * prices[0] + each["completion_tokens"] * prices[1] for each in served) <= most


def test_what_a_killed_daemon_held_comes_back(shared: Shared, upstream: Upstream) -> None:
    """When its lease ends, and not before."""
    living, killed = shared.pair("tokens = { month = 1500 }\nstrict = true")
    with RawClient(killed.port) as client:
        _send(client, _body("wait", 1000))
        _until(lambda: len(upstream.requests) == 1)
        refused = _ask(living, "hello", 1000)
        assert refused.status == 429
        assert _ours(refused)["held"] == len(_body("wait", 1000)) + 1000
        killed.process.send_signal(signal.SIGKILL)
        killed.process.wait(LIMIT)
    assert _ask(living, "hello", 1000).status == 429
    _until(lambda: _ask(living, "hello", 1000).status == 200, 2 * LIMIT)


def test_nothing_is_held_after_every_outcome_and_estimates_stay(shared: Shared, upstream: Upstream) -> None:
    """A request whose answer was lost counts its estimate at the other daemon, too; an error of the provider counts none."""
    one, other = shared.pair("requests = { month = 100 }\ntokens = { month = 100_000 }\nstrict = true")
    assert [_ask(one, each).status for each in ("hello", "fail", "cut", "hello")] == [200, 400, 502, 200]
    with RawClient(one.port) as client:
        _send(client, _body("wait"))
        _until(lambda: len(upstream.requests) == 5)
    _until(lambda: shared.count("requests WHERE state = 1") == 5)
    assert shared.count("holds WHERE expires_us IS NOT NULL") == 0
    refused = ask(other.port, "POST", "/v1/chat/completions", _body("hello", 200_000), JSON)
    lost = len(_body("cut")) + 20 + len(_body("wait")) + 20
    assert [_ours(refused)[name] for name in ("budget", "used", "held")] == ["tokens per month", 30 + lost, 0]


def _used(running: Daemon) -> int | None:
    """What is used, if the budget refuses a request now."""
    answered = _ask(running)
    return None if answered.status == 200 else int(_ours(answered)["used"])


def test_while_the_database_is_away_each_daemon_counts_what_it_knows(
    shared: Shared, upstream: Upstream, postgres_server: Server
) -> None:
    """What all had used before, and its own requests since. The log says so once; later the database decides again."""
    one, other = shared.pair("requests = { month = 6 }")
    assert [_ask(each).status for each in (one, other, one)] == [200] * 3
    try:
        postgres_server.stop()
        assert [_ask(one).status for _ in range(4)] == [200, 200, 200, 429]
        wait_for_output(one, "counts only what this daemon knows")
        assert one.get("/readyz") == 200
    finally:
        postgres_server.start()
    for each in (one, other):
        _until(lambda: _used(each) == len(upstream.requests))  # noqa: B023  (called here)
    assert one.stop() == 0
    assert one.output().count("counts only what this daemon knows") == 1


def test_a_client_that_leaves_while_its_request_waits_for_room_leaves_nothing(
    shared: Shared, upstream: Upstream
) -> None:
    one = shared.start("requests = { month = 2 }")
    assert _ask(one).status == 200
    _until(lambda: shared.count("requests") == 1)
    with shared.locked(), RawClient(one.port) as client:
        _send(client, _body("hello"))
        _until(lambda: shared.count("pg_locks WHERE NOT granted") == 1)
        client.reset()
        time.sleep(0.2)
    _until(lambda: shared.count("requests") == 2)
    assert shared.count("holds") == 0
    assert [_ask(one).status for _ in range(2)] == [200, 429]
    assert len(upstream.requests) == 2


def test_a_request_waits_two_seconds_for_the_database_at_most(shared: Shared) -> None:
    """Then this daemon decides by what it knows; what it claimed nevertheless is given back with the request."""
    one = shared.start("requests = { month = 3 }")
    assert _ask(one).status == 200
    _until(lambda: shared.count("requests") == 1)
    with shared.locked():
        assert [_ask(one).status for _ in range(3)] == [200, 200, 429]
        wait_for_output(one, "counts only what this daemon knows")
    _until(lambda: shared.count("requests") == 4)
    assert shared.count("holds") == 0


def test_the_lease_of_a_long_request_is_extended(shared: Shared, upstream: Upstream) -> None:
    fresh = f"holds WHERE expires_us > (extract(epoch FROM clock_timestamp()) + {LEASE_SECONDS - 5}) * 1000000"
    with RawClient(shared.start("requests = { month = 1 }").port) as client:
        _send(client, _body("wait"))
        _until(lambda: len(upstream.requests) == 1)
        assert shared.count(fresh) == 1
        _until(lambda: shared.count(fresh) == 0)
        _until(lambda: shared.count(fresh) == 1)


def test_a_lease_is_extended_three_times_in_its_length() -> None:
    assert EXTEND_SECONDS * 3 <= LEASE_SECONDS
