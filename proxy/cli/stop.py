"""``lava-proxy stop`` and ``resume``: by the running daemon, or in the ledger while none answers."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any, Literal

from proxy.cli import loading, running
from proxy.cli.terminal import Exit, Screen, failed, misused, put_json
from proxy.protocol.stop import Stop
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from proxy.config.settings import Server, Settings

Action = Literal["stop", "resume"]

SECONDS = 20.0
"""Time limit for one address. A daemon whose ledger does not answer waits for it some seconds."""
_MOST = 4 * 1024 * 1024


class CommandFailed(Exception):
    """The command cannot be done. The message is a sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def run(
    config: Path | None, action: Action, project: str | None, tool: str | None, session: str | None, *, as_json: bool
) -> int:
    """Stop or resume, or show what is stopped; returns the exit code."""
    names = {"project": project, "tool": tool, "session": session}
    given = {name: value for name, value in names.items() if value is not None}
    try:
        wanted = Stop.named(**given) if given or action == "resume" else None
    except ValueError as error:
        return misused(str(error))
    settings = loading.settings(config, as_json=as_json)
    try:
        at, answer = _asked(settings.server, action, given) or (None, _stored(settings, action, wanted))
        left = [Stop(*(each[name] or "" for name in Stop._fields)) for each in answer["stops"]]
        if action == "resume" and wanted is not None and not answer["resumed"]:
            raise CommandFailed("not_stopped", f"{wanted.describe()} is not stopped. {_listed('Stopped', left)}")
    except CommandFailed as error:
        return failed(str(error), as_json=as_json, code=error.code)
    if as_json:
        put_json({"ok": True, "at": at, **answer})
        return Exit.OK
    screen = Screen()
    if wanted is None:
        screen.line(_listed("Stopped", left))
    elif action == "stop":
        _tell_stopped(screen, wanted, answer)
    else:
        _tell_resumed(screen, answer, left)
    if at is None:
        follow = "Daemons on it follow within a few seconds" if answer["shared"] else "It counts from the next start on"
        screen.line(f"No daemon answers: this is what the ledger has. {follow}.")
    elif answer["shared"] and wanted is not None:
        screen.line("Other daemons on the same database follow within a few seconds.")
    return Exit.OK


def _tell_stopped(screen: Screen, wanted: Stop, answer: dict[str, Any]) -> None:
    ended, streams = answer["ended"], answer["streams"]
    what = ""
    if ended:
        what = f" {counted(ended, 'request')} in flight {'was' if ended == 1 else 'were'} ended, {streams} of them streaming."
    elif ended == 0:
        what = " Nothing of it was in flight."
    screen.line(f"Stopped: {wanted.describe()}.{what}")
    screen.line(f"New requests are refused with 403 project_stopped, until: lava-proxy resume {wanted.command()}")
    if answer["problem"]:
        screen.line(f"It does not survive a restart: {answer['problem']}.", "bad")


def _tell_resumed(screen: Screen, answer: dict[str, Any], left: Sequence[Stop]) -> None:
    resumed = [Stop(*(each[name] or "" for name in Stop._fields)) for each in answer["resumed"]]
    screen.line(_listed("Resumed", resumed))
    if left:
        screen.line(_listed("Still stopped", left))
    if answer["problem"]:
        screen.line(f"After a restart it is stopped again: {answer['problem']}.", "bad")


def _listed(word: str, stops: Sequence[Stop]) -> str:
    if not stops:
        return "Nothing is stopped."
    return f"{word}: {'; '.join(each.describe() for each in stops)}."


# the running daemon


def _asked(server: Server, action: Action, given: dict[str, str]) -> tuple[str, dict[str, Any]] | None:
    """Return where the daemon answered, and what; ``None`` if none answers. Raises ``CommandFailed``."""
    method, path = ("POST", f"/api/{action}") if given or action == "resume" else ("GET", "/api/stops")
    body = json.dumps(given).encode("ascii") if method == "POST" else None
    ways = list(running.ways(server, SECONDS))
    for at, connection in sorted(ways, key=lambda way: not isinstance(way[1], running.SocketConnection)):
        try:
            connection.request(method, path, body, running.headers(connection, server))
            response = connection.getresponse()
            found = response.read(_MOST)
        except TimeoutError:
            raise CommandFailed("no_answer", f"The daemon at {at} does not answer within {SECONDS:g} seconds") from None
        except (ConnectionResetError, http.client.HTTPException):
            raise CommandFailed("not_lava_proxy", f"The program at {at} is not lava-proxy") from None
        except OSError:
            continue
        finally:
            connection.close()
        return at, _read(at, response, found)
    return None


def _read(at: str, response: http.client.HTTPResponse, body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    code = response.headers["x-lava-proxy-error"]
    if response.status == 200 and isinstance(document, dict) and isinstance(document.get("stops"), list):
        return document
    if code == "local_key_required":
        raise CommandFailed(
            code,
            f"The daemon at {at} takes this with a key under [server], or over its unix socket. Add keys under [server], which "
            "the running daemon reloads, or unix_socket, which it uses after a restart",
        )
    if code is not None and isinstance(document, dict) and isinstance(document.get("error"), dict):
        raise CommandFailed(code, str(document["error"].get("message")))
    raise CommandFailed(
        "not_lava_proxy", f"The program at {at} is not lava-proxy, or an older one (status {response.status})"
    )


# the ledger


def _stored(settings: Settings, action: Action, wanted: Stop | None) -> dict[str, Any]:
    """Do it in the ledger, and return what the daemon would answer. Raises ``CommandFailed``."""
    from proxy.gateway.routing import RoutingTable, unknown_project
    from proxy.ledger import reading, upkeep
    from proxy.ledger.lock import AlreadyRunningError

    if not settings.ledger.enabled:
        raise CommandFailed(
            "not_running", "No daemon answers, and no ledger keeps what is stopped (enabled under [ledger])"
        )
    table, resumed = RoutingTable.of(settings), list[Stop]()
    if wanted is not None and action == "stop" and wanted.project and wanted.project not in table.projects:
        raise CommandFailed("project_not_found", str(unknown_project(wanted.project, table)))

    def choose(stops: list[Stop]) -> dict[Stop, bool]:
        if wanted is None:
            return {}
        if action == "stop":
            return {wanted: True}
        resumed.extend(each for each in stops if wanted.includes(each))
        return dict.fromkeys(resumed, False)

    try:
        with upkeep.writing(settings.ledger) as connection:
            left = upkeep.change_stops(connection, choose)
    except AlreadyRunningError as error:
        raise CommandFailed(
            "not_reachable",
            f"A daemon has the ledger (pid {error.pid}), and does not answer where this configuration says. Name its port, or "
            "unix_socket, under [server]",
        ) from None
    except reading.LedgerUnreadableError as error:
        raise CommandFailed("ledger_unreadable", f"No daemon answers. {error}") from None
    done: dict[str, Any] = {
        "stops": list(map(Stop.shown, left)),
        "problem": None,
        "shared": settings.ledger.url is not None,
    }
    if action == "resume":
        return {"resumed": list(map(Stop.shown, resumed)), **done}
    return done if wanted is None else {"stopped": wanted.shown(), "ended": None, "streams": None, **done}
