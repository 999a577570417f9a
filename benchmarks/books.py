"""Whether the books close: many requests, cut at every stage, and a biller whose records come late, get lost or double.

    python benchmarks/books.py                                        100,000 requests: about ten minutes
    python benchmarks/books.py --requests 500                         a few seconds
    python benchmarks/books.py --write benchmarks/RESULTS.md          the section "Books" there

A daemon, the emulator as biller, and `lava-proxy close`, as a user runs it: beside the daemon and without it; with a planted
record that belongs to no request; and after the ledger's file was deleted and rebuilt. Halfway the prices change. Exit code 1
if a goal is not met. Run it with the Python of an environment that has this checkout installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import processes
import report
from processes import Process, free_port

from proxy.emulator import Emulator, World
from proxy.emulator.biller import TokenPrices
from proxy.emulator.records import StoredRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

REQUESTS = 100_000
AT_ONCE = 24
LATE_SECONDS, PENDING_SECONDS = 3.0, 2.0
SHARES = {"lost": 0.01, "doubled": 0.01, "unmetered": 0.01}
PACE_SECONDS = 0.005
"""Between two events of a stream, so that one can be left."""
STAGES = {
    "client, in its body": 0.05,
    "client, before the answer": 0.05,
    "client, in the stream": 0.05,
    "Lava, before the answer": 0.05,
    "Lava, in the stream": 0.05,
}
"""Where requests are cut, and the share of each stage. Half of the rest are streams."""
PLANTED = "req_planted"
PLANTED_DOLLARS = "0.125"


# --- the biller ------------------------------------------------------------------------------------------------------


def bill(pipe: Connection) -> None:
    """Run the emulator, and do what the pipe asks for; the body of a process of its own."""
    with contextlib.suppress(EOFError, KeyboardInterrupt), Emulator(World.demo()) as emulator:
        world = emulator.world
        biller = world.behaviour.biller
        world.account.wallet_balance = Decimal(10**9)
        world.behaviour.pace = PACE_SECONDS
        # A list of 100,000 records needs more calls than a minute allows; waiting for the next one is not what is measured.
        world.behaviour.rest_limit = None
        biller.keep = 10**9
        biller.delay_seconds, biller.pending_seconds = LATE_SECONDS, PENDING_SECONDS
        for name, share in SHARES.items():
            setattr(biller, name, share)
        pipe.send((emulator.base_url, world.secret_key))
        while True:
            asked = pipe.recv()
            records = list(world.billing.records.values())
            if asked == "raise prices":
                biller.set_prices(TokenPrices(Decimal("0.000003"), output=Decimal("0.000015")))
            elif asked == "plant":
                found = StoredRequest(PLANTED, "completed", "openai", records[-1].endpoint, time.time())
                found.cost = found.charge = Decimal(PLANTED_DOLLARS)
                world.billing.add(found, biller.keep)
            elif asked == "remove":
                del world.billing.records[PLANTED]
            listed = [each for each in records if not each.lost]
            completed = [each for each in listed if each.status == "completed"]
            pipe.send((len(listed), sum((each.cost for each in completed), Decimal(0)), len(records) - len(listed)))


# --- the load --------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Requests to a daemon, each by a connection of its own. ``done`` counts them by stage, ``wrong`` what was unexpected."""

    port: int
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    async def send(self, count: int) -> None:
        """Send ``count`` requests, ``AT_ONCE`` at a time."""
        dice = random.Random(self.seed)
        left = iter(range(count))

        async def work() -> None:
            for _ in left:
                stage = dice.choices([*STAGES, "whole"], [*STAGES.values(), 1 - sum(STAGES.values())])[0]
                try:
                    await asyncio.wait_for(self._one(stage, dice.random() < 0.5), 60)
                except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                    self.wrong[f"{stage}: {type(error).__name__}"] += 1
                self.done[stage] += 1

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def _one(self, stage: str, streamed: bool) -> None:
        streamed = streamed if stage == "whole" else stage.endswith("in the stream")
        chat = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say ten words. " * 3}]}
        body = json.dumps(chat | ({"stream": True} if streamed else {})).encode()
        fault = {
            "client, before the answer": "slow-0.5",
            "Lava, before the answer": "no-answer",
            "Lava, in the stream": "cut-after-2",
        }.get(stage)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
        )
        head += f"x-emulator-fault: {fault}\r\n" if fault else ""
        head += f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            if stage == "client, in its body":
                writer.write(head.encode() + body[: len(body) // 2])
                await writer.drain()
                return
            writer.write(head.encode() + body)
            await writer.drain()
            if stage == "client, before the answer":
                await asyncio.sleep(0.1)
                return
            if stage == "client, in the stream":
                await reader.readuntil(b"data: ")
                return
            answer = await reader.read(-1) if stage == "whole" else await _to_the_end(reader)
            good = answer.startswith(b"HTTP/1.1 200") and answer.rstrip().endswith(
                b"0" if b"chunked" in answer[:500] else b"}"
            )
            if stage == "whole" and not good:
                self.wrong[f"{stage}: {answer[:40]!r}"] += 1
        finally:
            writer.transport.abort()


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionError):
        return await reader.read(-1)
    return b""


# --- the books -------------------------------------------------------------------------------------------------------


@dataclass
class Stand:
    """A daemon and its ledger."""

    folder: Path
    base_url: str
    key: str
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.path = self.folder / "ledger.sqlite"
        self.config = self.folder / "config.toml"
        self.config.touch(mode=0o600)
        self.config.write_text(
            f'[lava]\nsecret_key = "env:LAVA_KEY"\nbase_url = "{self.base_url}"\n[log]\nlevel = "warning"\n'
            f"[ledger]\npath = {json.dumps(str(self.path))}\nreconcile_seconds = 15\n",
            encoding="utf-8",
        )

    def start(self) -> Process:
        """Start the daemon."""
        words = [sys.executable, "-m", "proxy", "serve", "--config", str(self.config), "--port", str(self.port)]
        running = Process("lava-proxy", words, self.folder / "daemon", core=None, env={"LAVA_KEY": self.key})
        running.wait_for(self.port, "/readyz")
        return running

    def run(self, *words: str) -> tuple[int, Any, float]:
        """Run a command. Return its exit code, what it printed as JSON, and the seconds that it took."""
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "proxy", *words, "--json", "--config", str(self.config)],
            cwd=self.folder,
            env=processes.environment({"LAVA_KEY": self.key}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if not done.stdout:
            raise SystemExit(f"{' '.join(words)} printed nothing: {done.stderr[-2000:]}")
        return done.returncode, json.loads(done.stdout), time.perf_counter() - start

    def close(self) -> tuple[int, Any, float]:
        """Close the month; what Lava has no record of by now is taken as missing."""
        return self.run("close", f"{datetime.now(UTC):%Y-%m}", "--settled-after", "0s")


def unexplained(found: Any) -> str:
    """What a month leaves unexplained, in words."""
    return f"{found['unexplained_requests']} requests, ${found['unexplained_usd']}"


def causes(found: Any) -> str:
    """The explained differences, in words."""
    (account,) = found["accounts"]
    words = [f"{each['requests']:,} {each['cause']} (${each['usd']})" for each in account["differences"]]
    return ", ".join(words) or "none"


def figures(options: argparse.Namespace, folder: Path, pipe: Connection) -> Iterator[report.Figure]:
    """What was measured, against the goals."""
    stand = Stand(folder, *pipe.recv())

    def ask(what: str) -> tuple[int, Decimal, int]:
        pipe.send(what)
        found: tuple[int, Decimal, int] = pipe.recv()
        return found

    daemon = stand.start()
    try:
        load = Load(stand.port, options.seed)
        start = time.perf_counter()
        for part in range(2):
            asyncio.run(load.send((options.requests + part) // 2))
            if part == 0:
                ask("raise prices")
        tell(
            f"sent in {time.perf_counter() - start:.0f} s: {dict(load.done)}, unexpected: {dict(load.wrong) or 'nothing'}"
        )
        time.sleep(LATE_SECONDS + PENDING_SECONDS + 1)
        listed, dollars, lost = ask("sums")
        for where in ("beside the daemon", "without it"):
            if where == "without it":
                daemon.stop()
            code, found, seconds = stand.close()
            (account,) = found["accounts"]
            here, lava = account["here"], account["at_lava"]
            same = lava["usd"] == f"{dollars:.9f}" and lava["requests"] == listed
            measured = (
                f"{unexplained(found)}; at Lava {lava['requests']:,} records, ${lava['usd']}; here {here['billed']:,} billed of "
                f"{here['requests']:,} sent; explained: {causes(found)}; {seconds:.1f} s"
            )
            yield report.Figure(
                f"{options.requests:,} requests, `close` {where}",
                "0 requests, $0.00 unexplained",
                measured,
                code == 0 and same,
            )
        _, checked, _ = stand.run("ledger", "check")
        ask("plant")
        code, found, _ = stand.close()
        named = [each["record"] for account in found["accounts"] for each in account["phantoms"]]
        right = (
            code == 1 and named == [PLANTED] and unexplained(found) == f"1 requests, ${Decimal(PLANTED_DOLLARS):.9f}"
        )
        yield report.Figure(
            "… with a planted record",
            "it is named, exit 1",
            f"{unexplained(found)}: {', '.join(named)}; exit {code}",
            right,
        )
        ask("remove")
        for suffix in ("", "-wal", "-shm"):
            stand.path.with_name(stand.path.name + suffix).unlink(missing_ok=True)
        _, healed, seconds = stand.run("ledger", "heal")
        code, found, _ = stand.close()
        _, again, _ = stand.run("ledger", "check")
        (account,) = found["accounts"]
        doubled = sum(Decimal(each["usd"]) for each in account["differences"] if each["cause"] == "duplicate")
        # What was charged without a record cannot be rebuilt, and nothing here knows of it any more.
        measured = (
            f"{healed['healed']:,} requests, ${healed['billed_usd']} + ${doubled:.9f} doubled; {unexplained(found)}, of {lost:,} "
            f"lost; {seconds:.1f} s"
        )
        equal = Decimal(healed["billed_usd"]) + doubled == Decimal(f"{dollars:.9f}")
        right = equal and found["unexplained_requests"] == lost
        yield report.Figure("… the file deleted, `ledger heal`", "the figures of Lava's records", measured, right)
        yield report.Figure(
            "… sums per hour against rows, before and after", "the same", "the same", checked["ok"] and again["ok"]
        )
        if load.wrong:
            yield report.Figure("… requests with an unexpected end", "0", str(dict(load.wrong)), False)
    finally:
        daemon.stop()


def tell(text: str) -> None:
    """What goes on; the table alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    """Send, compare, print, write."""
    parser = argparse.ArgumentParser(prog="benchmarks/books.py", description="Measure whether the books close.")
    parser.add_argument("--requests", type=int, metavar="N", default=REQUESTS)
    parser.add_argument("--seed", type=int, metavar="N", default=1)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the section into this Markdown file")
    options = parser.parse_args(words)
    start: Callable[..., Any] = multiprocessing.get_context("spawn").Process
    ours, theirs = multiprocessing.Pipe()
    biller = start(target=bill, args=(theirs,), daemon=True)
    biller.start()
    try:
        with tempfile.TemporaryDirectory(prefix="lava-proxy-benchmark-") as name:
            found = list(figures(options, Path(name), ours))
    finally:
        biller.terminate()
        biller.join()
    print("\n".join(report.goals(found, markdown=False)))
    if options.write:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in SHARES.items())
        about = (
            f"Written by `python benchmarks/books.py --requests {options.requests}`, {time.strftime('%Y-%m-%d')}, at a load average "
            f"of {os.getloadavg()[0]:.1f}. Of the requests 5 % are cut at each of these stages: {'; '.join(STAGES)}. Lava's records "
            f"are listed {LATE_SECONDS:g} s late, and are pending for {PENDING_SECONDS:g} s more; {shares}. The prices change halfway."
        )
        body = "\n".join(["## Books", "", about, "", *report.goals(found, markdown=True)])
        former = options.write.read_text(encoding="utf-8") if options.write.exists() else ""
        options.write.write_text(report.with_section(former, report.BOOKS, body), encoding="utf-8")
        tell(f"written: {options.write}")
    return 0 if all(each.met for each in found) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
