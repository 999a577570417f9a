"""``lava-proxy api RESOURCE ACTION``: every call of the account API, by the same table as the client."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.cli import account, words
from proxy.cli.terminal import Exit, Screen, printable, put_json, say, spelled
from proxy.lava.resources import names, parameters, resources, rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.cli.words import Said
    from proxy.lava import LavaSync
    from proxy.lava.resources import Action

_USAGE = "lava-proxy api RESOURCE ACTION [IDS] [--field value …] [--json] [--all] [--yes] [--config FILE]"
_OPTIONS = (
    ("--json", "Print JSON, for scripts."),
    ("--all", "Every page of a list, not only the first."),
    ("-y, --yes", "Do not ask before something is deleted or replaced."),
    ("--config FILE", "The configuration file, instead of the usual places."),
    ("-h, --help", "Show the help: of all, of a resource, or of an action."),
)
ONCE = "This is shown only now: Lava never shows it again. Keep it where nobody else reads it"


def run(config: Path | None, given: Sequence[str]) -> int:
    """Do what the words say; returns the exit code (2 and the nearest name where they say nothing)."""
    try:
        said = words.sort(given)
        if said.help or said.action is None:
            return _help(said)
        # The local zone, so that a span counts from here and days are the user's.
        row, ids, fields = words.chosen(said, datetime.now(UTC).astimezone())
    except words.Misused as error:
        return account.misused(str(error))
    if said.everything and not row.paged:
        return account.misused(f"{row.resource} {row.name} is no list: leave --all out")
    if row.destructive and not said.yes and not agreed(f"{row.doc}: {' '.join(ids)}?"):
        if said.as_json:
            put_json({"ok": False, "code": "not_confirmed", "error": "nothing was done: it was not confirmed"})
        return Exit.FAILED
    file = Path(said.config) if said.config else config
    return account.ask(
        file, lambda lava: _call(lava, row, ids, fields, said), as_json=said.as_json, keyless=row.keyless
    )


def agreed(question: str) -> bool:
    """Ask a person; False, with a sentence, where there is none or the answer is no."""
    if sys.stdin is None or not sys.stdin.isatty():
        say(f"lava-proxy: {question} Nobody can be asked here: add --yes to do it.")
        return False
    sys.stderr.write(spelled(printable(f"{question} [y/N] "), sys.stderr))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    say("Nothing was done.")
    return False


def _call(lava: LavaSync, row: Action, ids: tuple[str, ...], fields: dict[str, Any], said: Said) -> int:
    from proxy.cli import showing

    if row.paged:
        return _list(lava, row, fields, said)
    shows = showing.revealed(row)
    record = lava.call(row, *ids, fields=fields)
    if said.as_json:
        put_json(showing.plain(record, shows))
    else:
        showing.show_one(Screen(), record, shows)
    if row.once:
        say(f"{ONCE}.")
    return Exit.OK


def _list(lava: LavaSync, row: Action, fields: dict[str, Any], said: Said) -> int:
    from proxy.cli import showing

    pages = lava.pages(row, fields)
    if said.everything:
        records, cursor = tuple(pages), None
    else:
        page = pages.first()
        records, cursor = page.data, page.next_cursor if page.has_more is not False else None
    if said.as_json:
        document: dict[str, Any] = {"data": [showing.plain(record) for record in records]}
        put_json(document if said.everything else {**document, "has_more": bool(cursor), "next_cursor": cursor})
        return Exit.OK
    showing.show_many(Screen(), records)
    if cursor:
        say(f"There are more: add --all, or --cursor {cursor}.")
    return Exit.OK


def _help(said: Said) -> int:
    """The help for as much as was said. Not asked for, it is exit code 2: something is missing."""
    screen = Screen()
    if said.resource is None:
        _help_all(screen)
    elif said.action is None:
        words.check(said.resource)
        _help_resource(screen, said.resource)
    else:
        words.check(said.resource, said.action)
        _help_action(screen, rows(f"{said.resource}.{said.action}"))
    return Exit.OK if said.help else Exit.MISUSED


def _help_all(screen: Screen) -> None:
    screen.line(f"Usage: {_USAGE}")
    screen.line()
    screen.prose("Everything that Lava's account API can do. Prints tables; JSON with --json.", indent=2)
    screen.title("Resources and their actions:")
    screen.pairs([(resource, ", ".join(names(resource))) for resource in resources()])
    screen.title("Options:")
    screen.pairs(_OPTIONS)
    screen.line()
    screen.line('For the fields of an action: "lava-proxy api meters create --help".')


def _help_resource(screen: Screen, resource: str) -> None:
    screen.line(f"Usage: lava-proxy api {resource} ACTION [IDS] [--field value …]")
    screen.title("Actions:")
    firsts = [rows(f"{resource}.{name}")[0] for name in names(resource)]
    screen.pairs([(" ".join([row.name, *(each.upper() for each in row.ids)]), row.doc) for row in firsts])


def _help_action(screen: Screen, found: tuple[Action, ...]) -> None:
    row = found[0]
    screen.line(f"Usage: {words.synopsis(row)}" + (" [--field value …]" if row.params else ""))
    screen.line()
    screen.prose(f"{row.doc}.", indent=2)
    if row.destructive:
        screen.prose("Asks first, unless --yes is given.", indent=2)
    if row.once:
        screen.prose(f"Its answer holds {' and '.join(row.reveals)}, which Lava shows this once.", indent=2)
    known = parameters(row.key)
    if known:
        screen.title("Fields:")
        screen.pairs(
            [
                (
                    f"{words.option(param.name)} {words.meta(param)}",
                    param.doc
                    + (" (required)" if param.required else "")
                    + (" (may be null)" if param.nullable else ""),
                )
                for param in known
            ]
        )
        notes = words.kinds(known)
        if notes:
            screen.line()
        for note in notes:
            screen.prose(note, indent=2)
    screen.title("Options:")
    unfit = {"--all": row.paged, "-y, --yes": row.destructive}
    screen.pairs([each for each in _OPTIONS if unfit.get(each[0], True)])
