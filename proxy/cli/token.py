"""``lava-proxy token``: the credential that a project's requests carry to Lava."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from proxy.cli import loading, payers
from proxy.cli.terminal import Exit, Screen, put_json, say
from proxy.gateway.routing import nearest
from proxy.lava.tokens import needs_client_key, read_token
from proxy.protocol.errors import ProxyError
from proxy.protocol.providers import ALIASES

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.config.settings import Project


def run(config: Path | None, project: str, provider: str | None, *, reveal: bool, as_json: bool) -> int:
    """Show the credential of ``project`` for ``provider`` (else one that it pays for); returns the exit code."""
    settings = loading.settings(config, as_json=as_json)
    active_config = payers.prepared(settings)
    table = active_config.table
    if project not in table.projects:
        close = nearest(project, table.projects)
        hint = f'did you mean "{close}"?' if close else f"there are: {', '.join(table.projects)}."
        return _refused(f'there is no project "{project}"; {hint}', "project_not_found", as_json=as_json)
    chosen = table.projects[project]
    name = ALIASES.get(provider, provider) if provider else _usual(chosen)
    if table.provider(name) is None:
        close = nearest(name, table.names)
        hint = (
            f'; did you mean "{close}"?' if close else "; lava-proxy knows Lava's providers and those of [providers]."
        )
        return _refused(f'there is no provider "{name}"{hint}', "provider_not_found", as_json=as_json)
    from_tool = needs_client_key(chosen, name)
    try:
        made = active_config.credential(project, name, payers.TOOLS_KEY if from_tool else None)
    except ProxyError as fault:
        return _refused(f"{fault.message} {fault.hint}", fault.code, as_json=as_json)
    if reveal and from_tool:
        why = f'project "{project}" takes the key for {name} from the tool, so each request has a token of its own.'
        return _refused(why, "byok_key_missing", as_json=as_json)

    value = made.authorization.decode("utf-8").removeprefix("Bearer ")
    kind = "spend key" if chosen.spend_key is not None else "forward token"
    fields = {} if chosen.spend_key is not None else payers.masked_fields(read_token(value))
    if as_json:
        document = {
            "project": project,
            "provider": name,
            "kind": kind,
            "decoded": fields or None,
            "masked": payers.masked(value) if not fields else None,
            **made.payment.details(),
        }
        put_json({**document, "token": value} if reveal else document)
        return Exit.OK
    screen = Screen()
    if reveal:
        # Alone, so that it can be piped. Not by the screen, which would spell an odd letter differently.
        print(value)
        return Exit.OK
    screen.line(f'What project "{project}" sends to Lava for {name}: a {kind}', "title")
    if fields:
        screen.line(json.dumps(fields, indent=2, ensure_ascii=False), "code", indent=2)
    else:
        screen.line(
            payers.masked(value) + ("" if kind == "spend key" else "   (it cannot be decoded)"), "code", indent=2
        )
    screen.line(f"Paid by {payers.in_words(made.payment)}.")
    screen.line("Keys are masked; --reveal prints the whole.", "note")
    return Exit.OK


def _usual(project: Project) -> str:
    """The provider to show where none was asked for: one that this project certainly pays for."""
    if project.default_provider is not None:
        return project.default_provider
    own = [provider for provider in project.byok if provider != "*"]
    return own[0] if own and "openai" not in own and project.meter is None else "openai"


def _refused(sentence: str, code: str, *, as_json: bool) -> int:
    if as_json:
        put_json({"ok": False, "code": code, "error": sentence})
    say(f"lava-proxy: {sentence}")
    return Exit.FAILED
