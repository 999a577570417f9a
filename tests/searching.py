"""The model of a body that is there whole, found and replaced by the same steps as on a request's way."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from proxy.protocol.body import (
    BodyModel,
    decoded,
    is_plain_json,
    model_of,
    place_of,
    raw_model,
    replaced,
    search,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence


def run(steps: Generator[Any, None, BodyModel]) -> BodyModel:
    """All steps of a search, and what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as over:
            found: BodyModel = over.value
            return found


def cut(body: bytes, size: int) -> list[bytes]:
    """The body in pieces of ``size`` bytes."""
    return [body[at : at + size] for at in range(0, len(body), size)]


def find_model(
    body: bytes, content_type: bytes | None, encoding: bytes | None, limit: int, size: int | None = None
) -> BodyModel:
    """As a small body that came whole is looked at, or, where ``size`` is given, as one that came in such pieces."""
    if size is None and is_plain_json(content_type, encoding):
        return model_of(body, raw_model(body))
    return run(search(cut(body, size or len(body) or 1), content_type, encoding, limit))


def replace_model(
    body: bytes, found: BodyModel, name: str, encoding: bytes | None = None, pieces: Sequence[bytes] | None = None
) -> bytes:
    """The body as it is sent where ``name`` takes the place of the model that was found."""
    if found.span is None:
        found = dataclasses.replace(found, span=place_of(body, found))
    assert found.span is not None
    source = pieces or [body]
    readable = decoded(source, encoding or b"", 1 << 30) if found.decoded else source
    new = written(found, name)
    changed = b"".join(replaced(readable, found.span, new))
    assert len(changed) == found.size + len(new) - (found.span[1] - found.span[0])
    return changed
