"""What the stop button stops: a project, or a tool or session of one or of all projects."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

from proxy.protocol import clients

if TYPE_CHECKING:
    from proxy.protocol.record import RequestFacts


class Stop(NamedTuple):
    """What is stopped. An empty field matches everything; ``session`` is as ``named`` makes it."""

    project: str = ""
    tool: str = ""
    session: str = ""

    @classmethod
    def named(cls, project: str | None = None, tool: str | None = None, session: str | None = None) -> Stop:
        """Return what a person names: a tool in any case, a session as the tool sends it or as the ledger shows it.

        The session is kept hashed, as in the ledger. Raises ``ValueError`` with a sentence.
        """
        for name, value in (("project", project), ("tool", tool), ("session", session)):
            if value is not None and not (value.isprintable() and 0 < len(value) <= clients.MAX_ID):
                raise ValueError(f"The {name} is not a text of 1 to {clients.MAX_ID} printable characters.")
        if session is not None and not clients.is_hashed(session):
            session = clients.hashed(session)
        found = cls(project or "", (tool or "").lower(), session or "")
        if not any(found):
            raise ValueError("Name a project, a tool or a session.")
        return found

    def matches(self, project: str, facts: RequestFacts) -> bool:
        """Whether a request is stopped."""
        if self.project and self.project != project:
            return False
        if self.tool and self.tool != facts.tool:
            return False
        if not self.session:
            return True
        return facts.session is not None and self.session in (facts.session, clients.hashed(facts.session))

    def includes(self, other: Stop) -> bool:
        """Whether resuming this one resumes ``other``: itself, or with only a project every stop in it."""
        return self == other or (self == Stop(self.project) and self.project == other.project)

    def shown(self) -> dict[str, str | None]:
        """Return it as JSON values; what it does not name is ``None``."""
        return {name: value or None for name, value in self._asdict().items()}

    def describe(self) -> str:
        """Return the words for messages: ``project "website", tool "codex"``."""
        parts = [f'{name} "{value}"' for name, value in self._asdict().items() if value]
        return ", ".join(parts)

    def command(self) -> str:
        """Return the arguments of ``lava-proxy stop`` and ``resume`` for it."""
        words = [self.project] if self.project else []
        for name, value in (("tool", self.tool), ("session", self.session)):
            words += [f"--{name}", value] if value else []
        return shlex.join(words)
