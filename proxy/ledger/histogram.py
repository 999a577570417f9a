"""A histogram of durations in a few bytes: for percentiles of any set of rows whose histograms are added.

A bucket is an eighth of a power of two wide, so a percentile read from it is right within 4.5 %. The stored form is the
pairs (bucket, count) of the buckets in use, each number as LEB128.
"""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PER_OCTAVE: Final = 8


def bucket_of(microseconds: int) -> int:
    """Return the bucket of a duration; below one microsecond it is 0."""
    return int(log2(microseconds) * PER_OCTAVE) + 1 if microseconds >= 1 else 0


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
    stored = bytearray()
    for bucket in sorted(counts):
        if counts[bucket] > 0:
            for number in (bucket, counts[bucket]):
                rest = number
                while rest >= 128:
                    stored.append(rest & 127 | 128)
                    rest >>= 7
                stored.append(rest)
    return bytes(stored)


def unpack(stored: bytes | None) -> dict[int, int]:
    """Return the count of each bucket in use. Raises ``ValueError`` for bytes that ``pack`` did not make."""
    numbers: list[int] = []
    number = shift = 0
    for byte in stored or b"":
        number |= (byte & 127) << shift
        if byte & 128:
            shift += 7
        else:
            numbers.append(number)
            number = shift = 0
    if shift or len(numbers) % 2:
        raise ValueError("not a histogram")
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


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
