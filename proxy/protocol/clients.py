"""What the head of a request says of the program that sent it: tool, session, agent."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_TOOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,39}")
MAX_ID: Final = 200

_BY_START: Final = (
    ("claude-cli", "claude-code"),
    ("codex", "codex"),
    ("openai/python", "openai-python"),
    ("openai/js", "openai-node"),
    ("asyncopenai/python", "openai-python"),
    ("anthropic/python", "anthropic-python"),
    ("asyncanthropic/python", "anthropic-python"),
    ("anthropic/js", "anthropic-node"),
    ("google-genai-sdk", "google-genai"),
    ("geminicli", "gemini-cli"),
    ("opencode", "opencode"),
    ("aider", "aider"),
    ("litellm", "litellm"),
    ("langchain", "langchain"),
    ("ai-sdk", "ai-sdk"),
    ("ai/", "ai-sdk"),
    ("cline", "cline"),
    ("continue", "continue"),
    ("zed", "zed"),
    ("mozilla", "browser"),
)
"""Beginnings of ``User-Agent`` in lower case, and the tool's name. Others are named by their first product."""

_SESSION: Final = (
    b"x-claude-code-session-id",  # Claude Code
    b"session_id",  # Codex CLI
    b"session-id",
    b"conversation_id",
    b"x-session-id",
    b"x-opencode-session",
)
_AGENT: Final = (b"x-claude-code-agent-id", b"x-agent-id")
_HASHED = re.compile(r"[0-9a-f]{24}")


def hashed(identifier: str) -> str:
    """Return the form in which session and agent ids are stored and shown: 24 hexadecimal digits."""
    return hashlib.blake2b(identifier.encode("utf-8", "replace"), digest_size=12, person=b"lava-proxy").hexdigest()


def is_hashed(identifier: str) -> bool:
    """Whether this has the form that ``hashed`` returns."""
    return _HASHED.fullmatch(identifier) is not None


def facts_of(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str | None, str | None, str | None]:
    """Return tool, session and agent of a request (header names in lower case), each ``None`` if it is not named."""
    values = dict(headers)
    return _tool(values), _identifier(values, _SESSION), _identifier(values, _AGENT)


def _tool(values: dict[bytes, bytes]) -> str | None:
    originator = values.get(b"originator", b"").decode("latin-1")
    if originator.startswith("codex"):  # Codex CLI names itself so, whatever its User-Agent
        return "codex"
    agent = values.get(b"user-agent", b"")[:200].decode("latin-1").strip()
    lower = agent.lower()
    for start, name in _BY_START:
        if lower.startswith(start):
            return name
    found = _TOOL.match(agent.partition("/")[0].strip())
    return found[0].strip().lower() if found else None


def _identifier(values: dict[bytes, bytes], names: tuple[bytes, ...]) -> str | None:
    for name in names:
        value = values.get(name)
        if value:
            return value[:MAX_ID].decode("latin-1")
    return None
