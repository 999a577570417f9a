"""What a request cost, and how it is known. Pure, and the only place that decides it.

Theory. Upstream calls (attempts) cost money, not requests. Each attempt has one source: what the biller says, else an
estimate, else nothing that is known. A request has the amounts of all its attempts, and one source: that of the attempt
about which least is known. A request of which nothing was sent upstream costs nothing and has the source ``none``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.ledger.columns import Bill

if TYPE_CHECKING:
    from collections.abc import Iterable


class Source(IntEnum):
    """Where a cost comes from; of several, the largest one counts."""

    NONE = 0  # nothing was sent: it costs nothing
    BILLED = 1  # the biller's record, completed
    UNMETERED = 2  # it ran, and the biller did not meter it
    ESTIMATED = 3  # not the biller's, or it has no record: by the price table
    PENDING = 4  # the biller has not decided; the amount is an estimate
    UNKNOWN = 5

    @property
    def word(self) -> str:
        """Return the word for people and scripts."""
        return self.name.lower()


#: The sources that have an amount.
PRICED: Final = (Source.BILLED, Source.PENDING, Source.ESTIMATED)


class AttemptCost(NamedTuple):
    """The columns of ``attempts`` that decide. Amounts in billionths of a dollar."""

    sent: bool | None
    bill: int | None
    billed: int | None
    estimated: int | None


class RequestCost(NamedTuple):
    """Billionths of a dollar by source. ``None``: no attempt has an amount of this source."""

    source: Source
    billed: int | None
    pending: int | None
    estimated: int | None

    @property
    def nano(self) -> int | None:
        """The sum of what is known, in billionths of a dollar; ``None`` if nothing is."""
        known = [each for each in (self.billed, self.pending, self.estimated) if each is not None]
        return sum(known) if known else None


def source_of(attempt: AttemptCost) -> Source:
    """Return the source of one attempt's cost. (``queries._SOURCE`` says the same in SQL.)"""
    if attempt.bill == Bill.COMPLETED and attempt.billed is not None:
        return Source.BILLED
    if attempt.bill == Bill.UNMETERED:
        return Source.UNMETERED
    if attempt.bill == Bill.PENDING:
        return Source.PENDING
    if attempt.sent is False:
        return Source.NONE
    return Source.UNKNOWN if attempt.estimated is None else Source.ESTIMATED


def cost_of(attempts: Iterable[AttemptCost]) -> RequestCost:
    """Return what a request cost."""
    source = Source.NONE
    amounts: dict[Source, int] = {}
    for attempt in attempts:
        found = source_of(attempt)
        source = max(source, found)
        amount = attempt.billed if found is Source.BILLED else attempt.estimated
        if found in PRICED and amount is not None:
            amounts[found] = amounts.get(found, 0) + amount
    return RequestCost(source, *(amounts.get(each) for each in PRICED))
