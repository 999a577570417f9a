"""``lava-proxy token``: the credential in a project's requests to Lava."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from proxy.cli import loading, payers
from proxy.cli.terminal import Exit, Screen, failed, put_json
from proxy.gateway.routing import nearest
from proxy.lava.tokens import needs_client_key, read_token
from proxy.protocol.errors import ProxyError
from proxy.protocol.providers import ALIASES

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.config.settings import Project


def run(config: Path | None, project: str, provider: str | None, *, reveal: bool, as_json: bool) -> int:
    """Show the credential of `project` for `provider` (default: one that it pays for). Return the exit code."""
    settings = loading.settings(config, as_json=as_json)
    active_config = payers.prepared(settings)
    table = active_config.table
    if project not in table.projects:
        close = nearest(project, table.projects)
        hint = f'did you mean "{close}"?' if close else f"there are: {', '.join(table.projects)}."
        return failed(f'there is no project "{project}"; {hint}', as_json=as_json, code="project_not_found")
    chosen = table.projects[project]
    name = ALIASES.get(provider, provider) if provider else _usual(chosen)
    if table.provider(name) is None:
        close = nearest(name, table.names)
        hint = (
            f'; did you mean "{close}"?' if close else "; lava-proxy knows Lava's providers and those of [providers]."
        )
        return failed(f'there is no provider "{name}"{hint}', as_json=as_json, code="provider_not_found")
    from_tool = needs_client_key(chosen, name)
    try:
        made = active_config.destination.credential(project, name, payers.TOOLS_KEY if from_tool else None)
    except ProxyError as fault:
        return failed(f"{fault.message} {fault.hint}", as_json=as_json, code=fault.code)
    if reveal and from_tool:
        why = f'project "{project}" takes the key for {name} from the tool, so each request has a token of its own.'
        return failed(why, as_json=as_json, code="byok_key_missing")

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
        # Alone, so that it can be piped. Not through the screen, which would escape some characters.
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
    """Return the default provider to show: one that this project certainly pays for."""
    if project.default_provider is not None:
        return project.default_provider
    own = [provider for provider in project.byok if provider != "*"]
    return own[0] if own and "openai" not in own and project.meter is None else "openai"
