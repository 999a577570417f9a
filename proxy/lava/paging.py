"""Lists, page by page, and the base of the typed resources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from proxy.lava.errors import UnexpectedAnswer
from proxy.lava.records import ApiRecord, Page
from proxy.lava.resources import parameters, rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Mapping
    from typing import Protocol

    class PageCaller(Protocol):
        """The part of the client that a list uses."""

        async def record(
            self,
            kind: type[T],
            action: Any,
            ids: tuple[str, ...],
            fields: Mapping[str, Any],
            extra: Mapping[str, Any] | None = None,
            idempotency_key: str | None = None,
        ) -> T: ...


R = TypeVar("R", bound=ApiRecord)
T = TypeVar("T", bound=ApiRecord)

PAGE_SIZE = 100
"""Lava's largest page. Lava's documents disagree about the default, so the size is always sent."""


class Pages(Generic[R]):
    """A list that is requested when it is used.

    ``async for record in pages`` yields the records of all pages; ``await pages`` returns the first page, with its
    ``next_cursor``; ``pages.by_page()`` yields the pages. Each of them sends new requests.
    """

    def __init__(
        self, lava: PageCaller, kind: type[R], action: Any, fields: Mapping[str, Any], limited: Callable[[], bool]
    ) -> None:
        self._lava = lava
        self._kind = kind
        self._action = action
        self._fields = dict(fields)
        self._limited = limited

    def __await__(self) -> Generator[Any, None, Page[R]]:
        return self._page(None).__await__()

    async def __aiter__(self) -> AsyncIterator[R]:
        async for page in self.by_page():
            for record in page.data:
                yield record

    async def by_page(self) -> AsyncIterator[Page[R]]:
        """Yield the pages. Raises ``UnexpectedAnswer`` if a cursor is missing or repeated: records would be missing, or the
        list would not end."""
        cursor: str | None = None
        seen = {self._fields.get("cursor")}
        while True:
            page = await self._page(cursor)
            yield page
            if page.last:
                return
            cursor = page.next_cursor or None
            if cursor is None:
                raise UnexpectedAnswer("Lava says that there are more records, but sent no cursor for them")
            if cursor in seen:
                raise UnexpectedAnswer("Lava sent the same cursor again; the list would never end")
            seen.add(cursor)

    async def _page(self, cursor: str | None) -> Page[R]:
        fields = dict(self._fields)
        if self._limited() and fields.get("limit") is None:
            fields["limit"] = PAGE_SIZE
        if cursor is not None:
            fields["cursor"] = cursor
        return await self._lava.record(Page[self._kind], self._action, (), fields)  # type: ignore[name-defined]  # the class is made at run time


class PagedResource:
    """What the typed resources of ``methods`` have in common.

    Each method passes its action of the table, and its arguments as ``locals()``.
    """

    def __init__(self, lava: Any) -> None:
        self._lava = lava

    def _pages(self, kind: type[R], action: str, given: Mapping[str, Any]) -> Pages[R]:
        pages: Pages[R] = self._lava.pages_of(kind, action, _fields(action, given))
        return pages

    async def _one(self, kind: type[T], action: str, given: Mapping[str, Any]) -> T:
        ids = tuple(given[name] for name in rows(action)[0].ids)
        extra, idempotency_key = given.get("extra_body"), given.get("idempotency_key")
        found: T = await self._lava.record(kind, action, ids, _fields(action, given), extra, idempotency_key)
        return found


def _fields(action: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the action, in the order of the table: a body has this order."""
    return {param.name: given[param.name] for param in parameters(action)}
