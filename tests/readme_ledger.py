"""The ledger of the README's section "What did it cost?": what three programs did on one morning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ledger_rows import Made

from proxy.ledger.columns import Bill, State

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Project, tool, provider and model of each program; its tokens (input, cache read, output) and dollars per request.
PROGRAMS: Final = (
    ("website", "openai-python", "openai", "gpt-4o-mini", (1_850, 0, 420), 530_000),
    ("main", "claude-code", "anthropic", "claude-opus-4-6", (2_100, 48_000, 950), 58_250_000),
    ("lab", "codex", "openai", "gpt-5", (9_400, 22_000, 1_300), 27_500_000),
)
STEP_US: Final = 41_000_000


def morning(end_us: int) -> Iterator[Made]:
    """Three hours of requests, the last one a second before ``end_us``; the newest have no bill yet, one is running."""
    count = 3 * 3600 * 1_000_000 // STEP_US
    for number in range(count):
        project, tool, provider, model, (fresh, cached, said), nano = PROGRAMS[number % 7 % 3]
        age = count - 1 - number
        late, failed = age < 3, number % 61 == 60
        share = 8 + number * 7 % 5
        tokens: dict[str, int | None] = {
            "input": fresh * share // 10,
            "cache_read": cached,
            "output": said * share // 10,
        }
        attempt = (
            (True, Bill.UNMETERED, None, None)
            if failed
            else (True, Bill.PENDING, None, nano * share // 10)
            if late
            else (True, Bill.COMPLETED, nano * share // 10, nano * share // 10)
        )
        running = age == 0
        yield Made(
            project=project,
            received_us=end_us - 1_000_000 - age * STEP_US,
            outcome=None if running else "provider_error" if failed else "ok",
            provider=provider,
            asked=model,
            served=None if running else model,
            tool=tool,
            session="7d1f9c0e2b4a" if tool == "claude-code" else None,
            agent="explorer" if tool == "claude-code" and number % 4 == 0 else None,
            state=State.OPEN if running else State.SETTLED,
            first_byte_us=None if running else 180_000 * share // 4,
            duration_us=None if running else 1_900_000 * share // 4,
            tokens={} if failed or running else tokens,
            status=None if running else 529 if failed else 200,
            attempts=[attempt],
        )
