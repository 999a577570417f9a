"""Queries Lava's account API for the reason of a refusal: at most once a minute per project, few calls, a short limit.

Theory. The first refused request of a project starts one task that makes all calls at once. Requests that are refused meanwhile
wait for the same task, and later ones use its results while they are fresh. A request that succeeds discards them, because the
cause is gone. A client that disconnects stops waiting, and the task is cancelled when no request waits for it. Results that
arrive in time are used even if others do not. The calls use the daemon's own engine, as forwarding does (same address,
outbound proxy, certificates and connections), and are not retried.

The account client is imported at its first use, in a thread, so that other streams continue meanwhile.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeVar

from proxy.gateway.destinations.diagnosis import AccountReport, nearest, showable
from proxy.lava.money import balance_of
from proxy.protocol import body as bodies
from proxy.protocol.wording import counted
from proxy.upstream import Origin, UpstreamError, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.gateway.destinations.diagnosis import Subject
    from proxy.lava.client import Lava
    from proxy.lava.errors import LavaError
    from proxy.lava.records import Connection, Customer
    from proxy.lava.replies import ApiReply
    from proxy.upstream import Engine

    T = TypeVar("T")

REPEAT_SECONDS = 60.0
"""Between two inquiries about a project; also the time for which results are fresh."""

LIMIT_SECONDS = 1.8
"""For one whole inquiry. Two seconds are promised; the rest is for its cancellation."""

MAX_QUESTIONS = 7
"""Calls of one inquiry. Each page of a list is one call."""

_MAX_CUSTOMER_QUESTIONS = 4  # two names of the customer and two of its plan
_CANCEL_SECONDS = 0.1
_MAX_BYTES = 2 * 1024 * 1024


class ProbeAddress(Protocol):
    """The address of Lava."""

    @property
    def origin(self) -> Origin: ...
    @property
    def host(self) -> bytes: ...
    @property
    def base_path(self) -> bytes: ...


class AccountProbe:
    """The inquiries of the daemon. They outlive a configuration. ``known`` has those with usable results, by project."""

    def __init__(self) -> None:
        self.known: dict[str, _Inquiry] = {}
        self._asked: dict[Subject, float] = {}

    async def about(
        self, subject: Subject, address: ProbeAddress, engine: Engine
    ) -> tuple[AccountReport, float] | None:
        """Return the account's report and its age in seconds; ``None`` if no inquiry is allowed now.

        A changed key or name makes a new subject.
        """
        name, now, age_s = subject.project, monotonic(), 0.0
        inquiry = self.known.get(name)
        if inquiry is None or inquiry.subject != subject or now - inquiry.started >= REPEAT_SECONDS:
            self._asked = {each: when for each, when in self._asked.items() if now - when < REPEAT_SECONDS}
            if subject in self._asked:
                return None
            self._asked[subject] = now
            inquiry = self.known[name] = _Inquiry(
                subject, ask(subject, ProbeSender(engine, address), LIMIT_SECONDS), now
            )
        elif inquiry.over:
            age_s = now - inquiry.started
        try:
            account = await inquiry.answers()
        finally:
            if inquiry.given_up and self.known.get(name) is inquiry:
                del self.known[name]
        return None if account is None else (account, age_s)

    def forget(self, project: str) -> None:
        """Discard the results for this project, because a request of it succeeded."""
        self.known.pop(project, None)


class _Inquiry:
    def __init__(self, subject: Subject, asking: Awaitable[AccountReport], started: float) -> None:
        self.subject = subject
        self.started = started
        self.given_up = False
        self._task = asyncio.ensure_future(asking)
        self._waiting = 0

    @property
    def over(self) -> bool:
        """Whether the results are there."""
        return self._task.done()

    async def answers(self) -> AccountReport | None:
        """Wait for the results; ``None`` if there are none in time."""
        left = max(0.0, self.started + LIMIT_SECONDS + _CANCEL_SECONDS - monotonic())
        self._waiting += 1
        try:
            # Neither a timeout nor the cancellation of one waiting request cancels the task itself.
            await asyncio.wait([self._task], timeout=left)
        finally:
            self._waiting -= 1
            if not self._task.done() and not self._waiting:
                self.given_up = True
                self._task.cancel()
        return self._task.result() if self._task.done() and not self._task.cancelled() else None


async def ask(subject: Subject, sender: ProbeSender, limit: float, most: int = MAX_QUESTIONS) -> AccountReport:
    """Return what Lava says about a subject, with at most ``most`` calls and within ``limit`` seconds.

    What does not arrive in time stays ``None``.
    """
    account = AccountReport()
    try:
        async with asyncio.timeout(limit):
            await asyncio.to_thread(_load)
            await _Questions(subject, account, _client(subject, sender, limit), most).put()
        if account.key is None and account.models is None and not account.failure:
            account.failure = "what answers in place of Lava's account API says nothing of use"
    except TimeoutError:
        account.failure = f"Lava's account API did not answer within {round(limit):g} s"
    except Exception as error:  # noqa: BLE001 - a fault of ours must not replace Lava's own error
        account.failure = f"lava-proxy failed while it asked ({type(error).__name__})"
    return account


def _load() -> None:
    """Import the account client and build the models of its replies. Takes a tenth of a second, once."""
    import_module("proxy.lava.client")
    from proxy.lava import records

    for model in (records.WalletBalance, records.Customer, records.Connection, records.CurrentSubscription):
        model.model_rebuild()
    records.Page[records.Meter].model_rebuild()


def _client(subject: Subject, sender: ProbeSender, limit: float) -> Lava:
    from proxy.lava.client import Lava

    return Lava(subject.key, base_url=subject.base_url, timeout=limit, retries=0, sender=sender)


class ProbeSender:
    """Sends account calls with the daemon's own engine (``proxy.lava.client.Sender``)."""

    def __init__(self, engine: Engine, address: ProbeAddress) -> None:
        self._engine = engine
        self._address = address

    async def send(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None, limit: float
    ) -> ApiReply:
        """Send one call. The caller enforces its own limit; ``limit`` is not used."""
        from proxy.lava.errors import Interrupted, Unreachable
        from proxy.lava.replies import ApiReply

        pairs = [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        address = self._address
        path = address.base_path + b"/" + target.encode("ascii")
        out = UpstreamRequest(method.encode("ascii"), address.origin, path, [(b"host", address.host), *pairs])
        try:
            opened = await self._engine.open(out, body)
        except UpstreamError as error:
            raise Unreachable(error.detail, sent=error.sent) from None
        try:
            content = b""
            while chunk := await opened.read():
                content += chunk
                if len(content) > _MAX_BYTES:
                    raise Interrupted("the answer is too long to be Lava's", sent=True)
        except UpstreamError as error:
            raise Interrupted(error.detail, sent=True) from None
        finally:
            opened.close()
        reply_headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in opened.headers}
        encoding = reply_headers.get("content-encoding")
        if encoding is not None:
            content = bodies.decode(content, encoding.encode("latin-1"), _MAX_BYTES) or b""
        return ApiReply(opened.status, reply_headers, content)


class _Known(Enum):
    YES = "yes"
    NO = "no"
    NO_PAGE = "no page"  # the address itself is unknown: this Lava uses other names


class _Questions:
    """The calls about one subject, all at once. Each result is stored in ``account`` as it arrives."""

    def __init__(self, subject: Subject, account: AccountReport, lava: Lava, most: int) -> None:
        self._subject = subject
        self._account = account
        self._lava = lava
        self._pages = most - 1 - (_MAX_CUSTOMER_QUESTIONS if subject.person is not None else 0)

    async def put(self) -> None:
        subject = self._subject
        async with asyncio.TaskGroup() as group:
            if subject.kind == "spend key":
                group.create_task(self._models())
            else:
                group.create_task(self._wallet())
            if subject.person is not None:
                group.create_task(self._customer(subject.person))
                group.create_task(self._plan(subject.person))
            if subject.meter is not None:
                group.create_task(self._meter(subject.meter))

    async def _one(
        self, call: Callable[[], Awaitable[T]], *, missing: T | None = None, no_page: T | None = None
    ) -> T | None:
        """Return the result; ``missing`` if Lava knows no such object, ``no_page`` if it knows no such address.

        ``None`` if Lava gave no usable reply.
        """
        from proxy.lava.errors import LavaError, NotFound, Unauthorized
        from proxy.lava.replies import SILENT

        account = self._account
        try:
            answer = await call()
        except (NotFound, Unauthorized) as error:
            from_lava = error.request_id is not None or not error.message.endswith(SILENT)
            if isinstance(error, NotFound):
                return missing if from_lava else no_page
            if from_lava:
                account.key = account.key or False  # a key that another call accepted is not unknown
            else:  # perhaps from a network in between
                account.failure = _in_words(error)
        except LavaError as error:
            account.failure = _in_words(error)
        except ValueError:
            account.failure = "the key cannot be sent: it holds a character that no key has"
        else:
            account.key = True
            return answer
        return None

    async def _wallet(self) -> None:
        wallet = await self._one(self._lava.wallet.retrieve)
        if wallet is not None:
            self._account.balance = wallet.balance

    async def _models(self) -> None:
        async def count() -> int:
            return len((await self._lava.models.list()).data)

        self._account.models = await self._one(count)
        self._account.key = None  # this list is public

    async def _customer(self, name: str) -> None:
        """Look it up by the current name and by that of SDK 8: a Lava may know only one, and their fields differ."""
        account, lava = self._account, self._lava

        def note(record: Connection | Customer) -> _Known:
            account.customer = True
            balance = balance_of(record)
            account.customer_balance = account.customer_balance if balance is None else balance
            return _Known.YES

        async def new() -> _Known:
            return note(await lava.customers.retrieve(name))

        async def old() -> _Known:
            record = await lava.connections.retrieve(name)
            account.has_credit = record.has_lava_credit_balance
            return note(record)

        found = await asyncio.gather(
            *(self._one(question, missing=_Known.NO, no_page=_Known.NO_PAGE) for question in (new, old))
        )
        if _Known.NO in found and all(each in (_Known.NO, _Known.NO_PAGE) for each in found):
            account.customer = False

    async def _plan(self, name: str) -> None:
        account, lava = self._account, self._lava
        subscription = await self._one(lambda: lava.customers.get_subscription(name))
        if subscription is None and account.key is not False:
            subscription = await self._one(lambda: lava.connections.get_subscription(name))
        if subscription is None:
            return
        current = subscription.subscription
        account.subscribed = current is not None
        if current is not None:
            account.plan = current.plan.name if current.plan is not None else None
            account.credit = current.credits.total_remaining if current.credits is not None else None
            account.renews = current.cycle_end_at

    async def _meter(self, slug: str) -> None:
        left = self._pages

        async def all_of_them() -> list[str]:
            nonlocal left
            slugs: list[str] = []
            async for page in self._lava.meters.list().by_page():
                slugs += [each.meter_slug for each in page.data if each.meter_slug is not None]
                left -= 1
                if slug in slugs:
                    self._account.meter = True
                elif page.last:
                    self._account.meter = False
                elif left:
                    continue
                break
            return slugs

        slugs = await self._one(all_of_them)
        if slugs is None:
            return
        if self._account.meter is None:
            self._account.failure = "Lava's list of meters is too long to be looked through"
        elif not self._account.meter:
            self._account.near, self._account.meters = nearest(slug, slugs), tuple(sorted(showable(slugs)))


def _in_words(error: LavaError) -> str:
    """Return why there is no usable reply, as a clause."""
    from proxy.lava.errors import RateLimited, UnexpectedAnswer, Unreachable

    if isinstance(error, RateLimited):
        when = f"in {counted(round(error.retry_after), 'second')}" if error.retry_after else "in a minute"
        return f"Lava allows 1000 requests a minute for a key, and this one has had them: try again {when}"
    if isinstance(error, Unreachable):
        return f"Lava's account API cannot be reached: {error.message}"
    if isinstance(error, UnexpectedAnswer):
        return f"what answers in place of Lava's account API cannot be used: {error.message}"
    return f"Lava's account API does not say: {error}"
