"""``lava-proxy cost``: what a range of commits, a session or a project cost."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.cli import ledger_asking
from proxy.cli.ledger_asking import money, price_words, short, sources, sums_for_scripts, time_of
from proxy.cli.terminal import Exit, Screen, put_json
from proxy.cli.times import UsageError
from proxy.ledger import queries
from proxy.ledger.queries import Filter

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.ledger.queries import Totals
    from proxy.ledger.reading import Book

GIT_SECONDS = 10.0
_SHOWN = 40


class CostWindow(NamedTuple):
    """A time, in microseconds UTC, and how it was found."""

    since_us: int | None
    until_us: int | None
    how: str


def run(
    config: Path | None, *, git: str | None, session: str | None, project: str | None, since: str | None, as_json: bool
) -> int:
    """Show what it cost; returns the exit code."""

    def show(book: Book) -> int:
        window = _window(git, session, since)
        with book.reading() as connection:
            stored = None if session is None else queries.stored_session(connection, session)
            wanted = Filter(project=project, session=stored, since_us=window.since_us, until_us=window.until_us)
            total = queries.sums(connection, wanted)
            agents = {} if session is None else queries.sums_by_agent(connection, wanted)
            tables = queries.price_tables(connection) if total.pending or total.estimated else []
        if as_json:
            put_json(_for_scripts(window, total, agents))
            return Exit.OK
        _draw(Screen(), window, project, session, total, agents, tables)
        return Exit.OK

    return ledger_asking.ask(config, show, as_json=as_json)


def _window(git: str | None, session: str | None, since: str | None) -> CostWindow:
    """The window that the options mean. Raises ``UsageError``."""
    if git is not None:
        if since is not None:
            raise UsageError("--git and --since exclude each other: both say from when on")
        found = _commits(git)
        return found if session is None else found._replace(how=f"{found.how}, of the session and of its sub-agents")
    if since is None and session is not None:
        return CostWindow(None, None, "all requests of the session, and of its sub-agents")
    begin = ledger_asking.begin_us(since or "30d")
    how = f"requests received since {time_of(begin or 0):%Y-%m-%d %H:%M}"
    return CostWindow(begin, None, how if session is None else f"{how}, of the session and of its sub-agents")


def _commits(written: str) -> CostWindow:
    """The time from one commit of the current directory's repository to another. Raises ``UsageError``."""
    first, dots, last = written.partition("..")
    if not dots or not first or last.startswith("."):
        raise UsageError("--git is a range of commits such as v1.0..HEAD or main~5..main")
    older, newer = _commit(first), _commit(last or "HEAD")
    if newer[1] < older[1]:
        raise UsageError(f"--git: {first} is newer than {last or 'HEAD'}; the older commit comes first: A..B")
    start, end = (time_of(each * 1_000_000) for _, each in (older, newer))
    how = (
        f"requests received between the times of the commits {older[0]} ({start:%Y-%m-%d %H:%M:%S}) and "
        f"{newer[0]} ({end:%Y-%m-%d %H:%M:%S}), whatever they were for"
    )
    return CostWindow(older[1] * 1_000_000, newer[1] * 1_000_000, how)


def _commit(name: str) -> tuple[str, int]:
    """The short id of a commit and its time in seconds. Raises ``UsageError``."""
    # A name that looks like an option is none.
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if not found:
        _git("rev-parse", "--git-dir", needed=True)
        raise UsageError(f"--git: this repository has no commit {name!r}")
    shown = _git("show", "-s", "--format=%h %ct", found, needed=True).split()
    return shown[0], int(shown[1])


def _git(*words: str, needed: bool = False) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and no word that could be an option
            ["git", *words],  # noqa: S607 - the user's own git
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise UsageError("--git needs git, which is not installed. Use --since instead") from None
    except (OSError, subprocess.TimeoutExpired):
        raise UsageError("--git: git does not answer. Use --since instead") from None
    if done.returncode and needed:
        raise UsageError("--git: the current directory is in no repository that git reads. Run it in the repository")
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""


def _for_scripts(window: CostWindow, total: Totals, agents: dict[str | None, Totals]) -> dict[str, Any]:
    return {
        "how": window.how,
        "since": None if window.since_us is None else ledger_asking.iso(window.since_us),
        "until": None if window.until_us is None else ledger_asking.iso(window.until_us),
        **sums_for_scripts(total),
        "agents": [{"agent": name, **sums_for_scripts(each)} for name, each in agents.items()],
    }


def _draw(
    screen: Screen,
    window: CostWindow,
    project: str | None,
    session: str | None,
    total: Totals,
    agents: dict[str | None, Totals],
    tables: list[str],
) -> None:
    of = "" if project is None else f" of project {project}"
    if not total.requests:
        screen.line(f"No request{of} has ended in that time.")
    else:
        screen.line(f"{_verdict(total)}{of}.", "title")
        screen.line()
        rows = [
            [source.word, f"{count:,}", "" if amount is None else money(amount), _MEANING[source.word]]
            for source, count, amount in sources(total)
        ]
        screen.table(["source", "requests", "dollars", ""], rows, numbers={1, 2})
    if session is not None and len(agents) > 1:
        screen.title("By agent")
        by_cost = sorted(agents.items(), key=lambda each: -each[1].nano)
        rows = [
            ["(the session itself)" if name is None else short(name), f"{each.requests:,}", *_amounts(each)]
            for name, each in by_cost[:_SHOWN]
        ]
        screen.table(["agent", "requests", "billed", "pending", "estimated"], rows)
        if len(agents) > len(rows):
            screen.line(f"… and {len(agents) - len(rows):,} more; --json prints all.", "note", indent=2)
    screen.line()
    by = f" Estimates are by {price_words(tables)}." if tables else ""
    screen.prose(f"Computed from: {window.how}.{by}", "note")


def _verdict(sums: Totals) -> str:
    counted = ledger_asking.requests(sums.requests)
    if ledger_asking.total(sums) is None:
        return f"Nothing is known of the cost of {counted}"
    return f"{money(sums.billed)} billed for {'' if sums.billed_requests == sums.requests else f'{sums.billed_requests:,} of '}{counted}"


_MEANING = {
    "billed": "by Lava's records",
    "pending": "estimated until the bill is there",
    "estimated": "by a price table; no bill",
    "unmetered": "Lava's record has no cost",
    "unknown": "no bill, and no price is known",
}


def _amounts(sums: Totals) -> list[str]:
    return [money(amount) if amount else "" for amount in (sums.billed, sums.pending, sums.estimated)]
