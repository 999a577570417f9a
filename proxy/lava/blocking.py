"""``LavaSync``: the same client for scripts, without ``await``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from proxy.lava.blocking_methods import BlockingResources
from proxy.lava.client import Lava
from proxy.lava.tokens import PRODUCTION
from proxy.lava.waiting import BlockingPages, Waiter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Unpack

    from proxy.lava import gateway
    from proxy.lava.gateway import Options
    from proxy.lava.records import AuthCredentials
    from proxy.lava.resources import Action


class LavaSync(BlockingResources):
    """One account at Lava, for scripts. It takes the arguments of ``Lava``, and each call waits for its answer.

    It works inside a running event loop, too (in a notebook, for example), and blocks it for that time. Use it in
    ``with``, or ``close()`` it. Several threads may use it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.lava = Lava(*args, **options)
        self.waiter = Waiter()
        super().__init__(self.lava, self.waiter)
        self.base_url = self.lava.base_url
        self.providers = self.lava.providers
        self.forward_token = self.lava.forward_token

    def __repr__(self) -> str:
        return repr(self.lava).replace("<Lava ", "<LavaSync ", 1)

    def __enter__(self) -> LavaSync:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. May be called twice."""
        self.waiter.close(self.lava.aclose)

    @classmethod
    def exchange_code(cls, code: str, *, base_url: str = PRODUCTION) -> AuthCredentials:
        """See ``Lava.exchange_code``."""
        waiter = Waiter()
        try:
            return waiter.wait(Lava.exchange_code(code, base_url=base_url))
        finally:
            waiter.close()

    def call(self, action: str | Action, *ids: str, **options: Any) -> Any:
        """See ``Lava.call``."""
        return self.waiter.wait(self.lava.call(action, *ids, **options))

    def pages(self, action: str | Action, fields: Mapping[str, Any] | None = None) -> BlockingPages[Any]:
        """See ``Lava.pages``."""
        return BlockingPages(self.waiter, self.lava.pages(action, fields))

    @overload
    def gateway(self, url: str, *, stream: Literal[True], **options: Unpack[Options]) -> BlockingStream: ...
    @overload
    def gateway(self, url: str, *, stream: Literal[False] = False, **options: Unpack[Options]) -> Any: ...
    def gateway(self, url: str, *, stream: bool = False, **options: Unpack[Options]) -> Any:
        """See ``Lava.gateway``."""
        if stream:
            return BlockingStream(self.waiter, self.waiter.wait(self.lava.gateway(url, stream=True, **options)))
        return self.waiter.wait(self.lava.gateway(url, **options))


class BlockingStream:
    """A ``GatewayStream`` for ``for`` and ``with``."""

    def __init__(self, waiter: Waiter, stream: gateway.GatewayStream) -> None:
        self.status = stream.status
        self.headers = stream.headers
        self.request_id = stream.request_id
        self._waiter = waiter
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return self._waiter.each(aiter(self._stream))

    def lines(self) -> Iterator[str]:
        """Yield the lines of text or SSE."""
        return self._waiter.each(self._stream.lines())

    def read(self) -> bytes:
        """Return the rest of the body."""
        return self._waiter.wait(self._stream.read())

    def close(self) -> None:
        """Close the stream."""
        self._waiter.wait(self._stream.aclose())

    def __enter__(self) -> BlockingStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
