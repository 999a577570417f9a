"""A table that is bounded in bytes."""

from __future__ import annotations

from proxy.protocol.bounded import BoundedDict


def test_it_holds_what_fits_and_begins_anew_when_full() -> None:
    """Counted by what its entries are said to take."""
    kept: BoundedDict[str, int] = BoundedDict(100)
    for number in range(10):
        kept.keep(str(number), number, 10)
    assert (len(kept), kept.held) == (10, 100)
    kept.keep("one more", 11, 10)
    assert dict(kept) == {"one more": 11}
    assert kept.held == 10


def test_one_entry_never_empties_it_alone() -> None:
    """What would take half of the room is not kept; the same key counts once."""
    kept: BoundedDict[str, int] = BoundedDict(100)
    kept.keep("a", 1, 10)
    kept.keep("large", 2, 51)
    kept.keep("a", 1, 10)
    assert dict(kept) == {"a": 1}
    assert kept.held == 10
