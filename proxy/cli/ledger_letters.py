"""``lava-proxy ledger dead-letters``: usage records that the daemon does not deliver by itself any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from proxy.cli import ledger_asking
from proxy.cli.api import agreed
from proxy.cli.ledger_asking import iso, time_of
from proxy.cli.terminal import Exit, Screen, failed, misused, put_json
from proxy.ledger import queries, upkeep
from proxy.ledger.lock import AlreadyRunningError
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from proxy.ledger.queries import DeadLetter
    from proxy.ledger.reading import Book

Action = Literal["list", "replay", "delete"]


def run(config: Path | None, action: Action, ids: Sequence[str], *, all_: bool, yes: bool, as_json: bool) -> int:
    """List, replay or delete dead letters; returns the exit code."""
    if action == "list" and (ids or all_):
        return misused("list takes no id: it lists all")
    if action != "list" and bool(ids) == all_:
        return misused(f"{action} needs the ids of dead letters, or --all")

    def work(book: Book) -> int:
        with book.reading() as connection:
            letters = queries.dead_letters(connection)
        if action == "list":
            return _list(letters, as_json=as_json)
        missing = sorted(set(ids) - {each.id for each in letters})
        if missing:
            return failed(
                f"There is no dead letter {missing[0]}. `lava-proxy ledger dead-letters` lists them", as_json=as_json
            )
        unknown = [each.id for each in letters if not each.known and each.id in ids]
        if action == "replay" and unknown:
            return failed(
                f"{unknown[0]} cannot be reported: what it used is not known. Delete it, once you have billed it otherwise",
                as_json=as_json,
            )
        chosen = len(letters) if all_ else len(set(ids))
        question = f"Delete {counted(chosen, 'dead letter')}? Their usage is then never billed."
        if action == "delete" and not yes and not agreed(question):
            return Exit.FAILED
        change = upkeep.replay if action == "replay" else upkeep.delete
        try:
            with upkeep.writing(book.settings.ledger) as connection:
                count = change(connection, None if all_ else ids)
        except AlreadyRunningError as error:
            text = f"A daemon has the ledger (pid {error.pid}), and one process writes it. Stop the daemon, and do this again"
            return failed(text, as_json=as_json, code="ledger_in_use")
        if as_json:
            put_json({"ok": True, "changed": count})
        else:
            done = "deleted" if action == "delete" else "will be delivered again when the daemon runs"
            Screen().line(f"{counted(count, 'dead letter')} {done}.")
            if action == "replay" and count < chosen:
                Screen().line(f"{counted(chosen - count, 'dead letter')} left: what they used is not known.", "note")
        return Exit.OK

    return ledger_asking.ask(config, work, as_json=as_json)


def _list(letters: list[DeadLetter], *, as_json: bool) -> int:
    if as_json:
        put_json(
            [
                {
                    "id": each.id,
                    "project": each.project,
                    "created": iso(each.created_us),
                    "attempts": each.attempts,
                    "problem": each.problem,
                    "replayable": each.known,
                }
                for each in letters
            ]
        )
        return Exit.OK
    screen = Screen()
    if not letters:
        screen.line("There are no dead letters.")
        return Exit.OK
    rows = [
        [
            each.id,
            ledger_asking.short(each.project),
            f"{time_of(each.created_us):%Y-%m-%d %H:%M}",
            str(each.attempts),
            ledger_asking.short(" ".join((each.problem or "").split()), 60),
        ]
        for each in letters
    ]
    screen.table(["id", "project", "created", "attempts", "problem"], rows, numbers={3})
    return Exit.OK
