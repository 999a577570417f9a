"""One HTTP request of the demo: sent, and as the curl command that repeats it."""

from __future__ import annotations

import http.client
import json
import os
import shlex
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """A POST request with a JSON body."""

    url: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    def curl(self) -> str:
        """Return the command that sends the same, for a POSIX shell."""
        options = "-sN" if self.streams else "-s"
        if any(os.environ.get(name) for name in ("http_proxy", "all_proxy", "ALL_PROXY")):
            options += " --noproxy '*'"  # curl would ask that proxy for this machine's own address
        headers = {**self.headers, "content-type": "application/json"}
        lines = [
            f"curl {options} {self.url}",
            *(f"  -H {shlex.quote(f'{name}: {value}')}" for name, value in headers.items()),
        ]
        return " \\\n".join([*lines, f"  -d {shlex.quote(json.dumps(self.body))}"])

    def send(self, on_text: Callable[[str], object] | None = None) -> DemoResponse:
        """Send the request. ``on_text`` gets each part of a streamed text as it arrives.

        Raises ``OSError`` and ``http.client.HTTPException``.
        """
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=SECONDS)
        started = monotonic()
        try:
            headers = {**self.headers, "content-type": "application/json"}
            connection.request("POST", where.path, json.dumps(self.body).encode(), headers)
            response = connection.getresponse()
            answer = DemoResponse(response.status, {name.lower(): value for name, value in response.getheaders()})
            if "text/event-stream" in answer.headers.get("content-type", ""):
                for line in response:
                    answer.take(line, monotonic() - started, on_text)
            else:
                answer.document = _document(response.read())
        finally:
            connection.close()
        answer.seconds = monotonic() - started
        return answer


@dataclass(slots=True)
class DemoResponse:
    """The response. ``document`` is its JSON unless it was a stream; times in seconds from the start."""

    status: int
    headers: dict[str, str]
    document: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    pieces: int = 0
    ended: bool = False
    first_s: float = 0.0
    seconds: float = 0.0

    def take(self, line: bytes, at: float, on_text: Callable[[str], object] | None) -> None:
        """Take one line of an event stream of chat completions."""
        if not line.startswith(b"data:"):
            return
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            self.ended = True
            return
        try:
            piece = _document(data)["choices"][0]["delta"]["content"]
        except (KeyError, IndexError, TypeError):
            return
        if isinstance(piece, str) and piece:
            self.first_s = self.first_s or at
            self.text += piece
            self.pieces += 1
            if on_text is not None:
                on_text(piece)

    @property
    def answer_text(self) -> str:
        """Return the text of the answer in any dialect, or an empty string."""
        if self.text:
            return self.text
        try:
            if "choices" in self.document:
                return str(self.document["choices"][0]["message"]["content"])
            return str(self.document["content"][0]["text"])
        except (KeyError, IndexError, TypeError):
            return ""

    @property
    def error(self) -> dict[str, Any]:
        """Return the member ``error`` of the answer."""
        found = self.document.get("error")
        return found if isinstance(found, dict) else {}


def _document(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
