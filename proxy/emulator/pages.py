"""The emulator's HTML pages."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from proxy.emulator.exchange import EmulatedReply

if TYPE_CHECKING:
    from collections.abc import Mapping

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 30rem; margin: 15vh auto; padding: 0 1rem; color: #222; background: #fff; }}
button {{ font: inherit; padding: .5rem 1.5rem; border: 0; border-radius: .4rem; color: #fff; background: #b3360b; cursor: pointer; }}
button[name=refuse] {{ color: #222; background: #e4e4e4; }}
small {{ color: #555; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{text}</p>
{rest}<p><small>This is the offline Lava of lava-proxy: no account, no money.</small></p>
</main>
</body>
</html>
"""


def _page(title: str, text: str, rest: str, status: int) -> EmulatedReply:
    whole = _FRAME.format(title=escape(title), text=escape(text), rest=rest)
    headers = [("cache-control", "no-store"), ("referrer-policy", "no-referrer"), ("x-frame-options", "DENY")]
    return EmulatedReply(status, [whole.encode()], "text/html; charset=utf-8", headers)


def message(title: str, text: str, status: int = 200) -> EmulatedReply:
    return _page(title, text, "", status)


def form(
    title: str, text: str, action: str, hidden: Mapping[str, str], button: str, *, refuse: str | None = None
) -> EmulatedReply:
    """Return a page with a button that posts the ``hidden`` fields to ``action``, and one that adds ``refuse``."""
    fields = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">\n' for name, value in hidden.items()
    )
    buttons = f'<button type="submit">{escape(button)}</button>\n'
    if refuse is not None:
        buttons += f'<button type="submit" name="refuse">{escape(refuse)}</button>\n'
    rest = f'<form method="post" action="{escape(action)}">\n{fields}{buttons}</form>\n'
    return _page(title, text, rest, 200)
