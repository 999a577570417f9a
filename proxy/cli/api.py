"""``lava-proxy api RESOURCE ACTION``: every call of the account API, from the same table as the client."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.cli import account, arguments
from proxy.cli.terminal import Exit, Screen, misused, printable, put_json, say, spelled
from proxy.lava.resources import names, parameters, resources, rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.cli.arguments import Arguments
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
ONCE = "This is shown only now: Lava never shows it again. Keep it in a safe place"


def run(config: Path | None, words: Sequence[str]) -> int:
    """Run the action that `words` name. Return the exit code: 2, with the nearest name, if there is no such action."""
    try:
        given = arguments.parse(words)
        if given.help or given.action is None:
            return _help(given)
        # The local zone, so that a span counts from here and days are the user's.
        row, ids, fields = arguments.resolve_call(given, datetime.now(UTC).astimezone())
    except arguments.UsageError as error:
        return misused(str(error))
    if given.everything and not row.paged:
        return misused(f"{row.resource} {row.name} is no list: leave --all out")
    if row.destructive and not given.yes and not agreed(f"{row.doc}: {' '.join(ids)}?"):
        if given.as_json:
            put_json({"ok": False, "code": "not_confirmed", "error": "nothing was done: it was not confirmed"})
        return Exit.FAILED
    file = Path(given.config) if given.config else config
    return account.ask(
        file, lambda lava: _call(lava, row, ids, fields, given), as_json=given.as_json, keyless=row.keyless
    )


def agreed(question: str) -> bool:
    """Ask for confirmation. Return False, with a sentence, if the answer is no or there is no terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        say(f"lava-proxy: {question} There is no terminal to confirm it: add --yes to do it.")
        return False
    sys.stderr.write(spelled(printable(f"{question} [y/N] "), sys.stderr))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    say("Nothing was done.")
    return False


def _call(lava: LavaSync, row: Action, ids: tuple[str, ...], fields: dict[str, Any], given: Arguments) -> int:
    from proxy.cli import rendering

    if row.paged:
        return _list(lava, row, fields, given)
    shows = rendering.revealed(row)
    record = lava.call(row, *ids, fields=fields)
    if given.as_json:
        put_json(rendering.plain(record, shows))
    else:
        rendering.show_one(Screen(), record, shows)
    if row.once:
        say(f"{ONCE}.")
    return Exit.OK


def _list(lava: LavaSync, row: Action, fields: dict[str, Any], given: Arguments) -> int:
    from proxy.cli import rendering

    pages = lava.pages(row, fields)
    if given.everything:
        records, cursor = tuple(pages), None
    else:
        page = pages.first()
        records, cursor = page.data, page.next_cursor if page.has_more is not False else None
    if given.as_json:
        document: dict[str, Any] = {"data": [rendering.plain(record) for record in records]}
        put_json(document if given.everything else {**document, "has_more": bool(cursor), "next_cursor": cursor})
        return Exit.OK
    rendering.show_many(Screen(), records)
    if cursor:
        say(f"There are more: add --all, or --cursor {cursor}.")
    return Exit.OK


def _help(given: Arguments) -> int:
    """Print the help for the given resource and action. Return 2 if it was not asked for: an argument is missing."""
    screen = Screen()
    if given.resource is None:
        _help_all(screen)
    elif given.action is None:
        arguments.check(given.resource)
        _help_resource(screen, given.resource)
    else:
        arguments.check(given.resource, given.action)
        _help_action(screen, rows(f"{given.resource}.{given.action}"))
    return Exit.OK if given.help else Exit.MISUSED


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
    screen.line(f"Usage: {arguments.synopsis(row)}" + (" [--field value …]" if row.params else ""))
    screen.line()
    screen.prose(f"{row.doc}.", indent=2)
    if row.destructive:
        screen.prose("Asks for confirmation, unless --yes is given.", indent=2)
    if row.once:
        screen.prose(f"Its answer contains {' and '.join(row.reveals)}, which Lava shows only once.", indent=2)
    known = parameters(row.key)
    if known:
        screen.title("Fields:")
        screen.pairs(
            [
                (
                    f"{arguments.option_name(param.name)} {arguments.placeholder(param)}",
                    param.doc
                    + (" (required)" if param.required else "")
                    + (" (may be null)" if param.nullable else ""),
                )
                for param in known
            ]
        )
        notes = arguments.value_notes(known)
        if notes:
            screen.line()
        for note in notes:
            screen.prose(note, indent=2)
    screen.title("Options:")
    unfit = {"--all": row.paged, "-y, --yes": row.destructive}
    screen.pairs([each for each in _OPTIONS if unfit.get(each[0], True)])
