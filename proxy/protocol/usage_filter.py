"""Removal of the extra usage chunk from a chat stream, for a client that did not ask for it.

Theory. With ``stream_options.include_usage`` OpenAI adds one chunk before ``[DONE]`` that has ``"choices": []`` and ``usage``
(API reference, "Create chat completion", ``stream_options``). Some clients read ``choices[0]`` of every chunk. Only that whole
event is removed; every other byte stays as it is, also the ``"usage": null`` that OpenAI then adds to the other chunks. An
event is held until its end, because its last byte may decide; no client can use a part of an event.

The event rules are those of ``usage.py``.
"""

from __future__ import annotations

import re

from proxy.protocol import fast_json

_MAX_HELD = 16 * 1024
"""Bytes of an unfinished event. A longer one is no usage chunk, and is passed on as it comes."""

_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class UsageFilter:
    """Filters one stream: ``feed`` returns what the client gets now, ``finish`` the rest."""

    __slots__ = ("_dropped", "_held", "_passing", "_seen")

    def __init__(self) -> None:
        self._held = b""
        self._seen = 0  # bytes of it that were searched for the event's end
        self._passing = False  # the rest of a long event
        self._dropped: bool | None = (
            None  # whether the last event was; None unless it ended with a CR, whose LF may follow
        )

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes for the client, of ``chunk`` and of what was held before."""
        if not self._held and not self._passing and self._dropped is None and chunk.endswith((b"\n\n", b"\r\n\r\n")):
            found = chunk.count(b'"usage"')
            if not found or found == chunk.count(b'"usage":null'):
                return chunk  # the common case: whole events, none of which has counts
        passed = []
        if self._dropped is not None and chunk:
            if chunk[:1] == b"\n":
                if not self._dropped:
                    passed.append(b"\n")
                chunk = chunk[1:]
            self._dropped = None
        text = self._held + chunk
        start, seen = 0, max(0, self._seen - 3)
        while end := _EVENT_END.search(text, max(start, seen)):
            event = text[start : end.end()]
            start = end.end()
            drop = not self._passing and _is_usage(event)
            self._passing = False
            if not drop:
                passed.append(event)
            if start == len(text) and event.endswith(b"\r"):
                self._dropped = drop
        self._held = text[start:]
        self._seen = len(self._held)
        if self._passing or len(self._held) > _MAX_HELD:
            # What may be the beginning of the event's end is searched again.
            passed.append(self._held[:-3])
            self._held = self._held[-3:]
            self._seen = 0
            self._passing = True
        return b"".join(passed)

    def finish(self) -> bytes:
        """Return what is held at the end of the stream."""
        held, self._held = self._held, b""
        return b"" if not self._passing and _is_usage(held) else held


def _is_usage(event: bytes) -> bool:
    """Whether an event is the extra chunk."""
    if len(event) > _MAX_HELD or b'"usage"' not in event or b'"choices"' not in event:
        return False
    data = [
        line.removeprefix(b"data:")
        for line in _LINE_END.split(event.removeprefix(b"\xef\xbb\xbf"))
        if line.startswith(b"data:")
    ]
    body = fast_json.read(b"\n".join(data))
    return isinstance(body, dict) and body.get("choices") == [] and isinstance(body.get("usage"), dict)
