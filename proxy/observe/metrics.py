"""Metrics for Prometheus: stored in plain dictionaries, converted to prometheus-client's types only when scraped.

A request costs a few dictionary look-ups and additions; the library (15 ms and 3 MiB to load) is not needed for them.
All methods run in one thread, that of the event loop, and need no lock. Labels are bounded: projects and providers are
from the configuration, but reloads may add new ones without end, so those after the first few hundred are counted as
``-``.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Protocol

from proxy import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.protocol.record import Record

_MAX_LABELS = 200
_MAX_SERIES = 5_000
# Upper bounds in seconds: from the proxy's own overhead to the longest responses of slow models.
_FIRST_BYTE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_DURATION = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_NONE = "-"


class LedgerStatus(Protocol):
    """What is shown of the ledger (``ledger/writer.py``)."""

    @property
    def queued(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def written(self) -> int: ...


class OutboxNumbers(Protocol):
    """What is shown of the outbox (``ledger/outbox.py``)."""

    @property
    def waiting(self) -> int: ...
    @property
    def dead(self) -> int: ...


class Metrics:
    """The metrics of the process since its start."""

    def __init__(
        self,
        in_flight: Callable[[], int],
        ledger: Callable[[], LedgerStatus] | None = None,
        outbox: Callable[[], OutboxNumbers] | None = None,
        reconciled: Callable[[], float] | None = None,
    ) -> None:
        self._in_flight = in_flight
        self._ledger = ledger
        self._outbox = outbox
        self._reconciled = reconciled
        self._projects: dict[str | None, str] = {None: _NONE}
        self._providers: dict[str | None, str] = {None: _NONE}
        self._series: dict[tuple[str, str], _Series] = {}
        self._kinds = 0  # of (status, outcome), in all series together
        # The series of a project and a provider, by their names in a record: replaces two look-ups.
        self._found: dict[tuple[str | None, str | None], _Series] = {}
        self._reloads = 0
        self._reload_failures = 0
        self._registry: Any = None

    def observe(self, record: Record) -> None:
        """Count a finished request."""
        project, provider, status, outcome = record.project, record.provider, record.status, record.outcome or ""
        first_byte_s, duration_s = record.first_byte_s, record.duration_s
        series = self._found.get((project, provider)) or self._find(project, provider)
        kind = (status, outcome)
        count = series.requests.get(kind)
        if count is None:
            count = 0
            if self._kinds >= _MAX_SERIES:
                series = self._of(_NONE, _NONE)
                count = series.requests.get(kind, 0)
            self._kinds += not count
        series.requests[kind] = count + 1
        counts = series.duration
        counts[bisect_left(_DURATION, duration_s)] += 1
        counts[-1] += duration_s
        if first_byte_s is not None:
            counts = series.first_byte
            counts[bisect_left(_FIRST_BYTE, first_byte_s)] += 1
            counts[-1] += first_byte_s

    def config_reload(self, ok: bool) -> None:
        """Count a reload of the configuration, successful (`ok`) or not."""
        self._reloads += 1
        if not ok:
            self._reload_failures += 1

    def render(self) -> tuple[bytes, str]:
        """Return (body, content type) of the exposition, in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        if self._registry is None:
            self._registry = CollectorRegistry(auto_describe=False)
            self._registry.register(self)
            ProcessCollector(registry=self._registry)  # CPU, memory, descriptors; nothing outside Linux
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def describe(self) -> list[Any]:
        """Return nothing. Without this method, the registry would collect once just for the names."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the current metrics, for the registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        labels = ("project", "provider", "status", "outcome")
        requests = CounterMetricFamily("lava_proxy_requests", "Forwarded requests that are over.", labels=labels)
        for where, each in self._series.items():
            for (status, outcome), count in each.requests.items():
                requests.add_metric((*where, _NONE if status is None else str(status), outcome), count)
        yield requests
        for name, text, bounds, series in (
            (
                "first_byte",
                "Seconds until the first byte of the answer.",
                _FIRST_BYTE,
                {where: each.first_byte for where, each in self._series.items()},
            ),
            (
                "request_duration",
                "Seconds until a request was over.",
                _DURATION,
                {where: each.duration for where, each in self._series.items()},
            ),
        ):
            family = HistogramMetricFamily(f"lava_proxy_{name}_seconds", text, labels=labels[:2])
            for where, counts in series.items():
                if any(counts):
                    family.add_metric(where, _cumulative(bounds, counts), counts[-1])
            yield family
        yield GaugeMetricFamily("lava_proxy_streams_in_flight", "Requests that are not over.", self._in_flight())
        yield CounterMetricFamily("lava_proxy_config_reloads", "Times the configuration was read again.", self._reloads)
        yield CounterMetricFamily(
            "lava_proxy_config_reload_failures", "Reloads that were refused; the old stayed.", self._reload_failures
        )
        if self._ledger is not None:
            ledger = self._ledger()
            yield GaugeMetricFamily("lava_proxy_ledger_queue", "Requests that wait to be recorded.", ledger.queued)
            yield CounterMetricFamily("lava_proxy_ledger_written", "Requests recorded in the ledger.", ledger.written)
            yield CounterMetricFamily(
                "lava_proxy_ledger_dropped", "Requests that the ledger did not record.", ledger.dropped
            )
        if self._outbox is not None:
            outbox = self._outbox()
            yield GaugeMetricFamily("lava_proxy_outbox_waiting", "Usage records to be reported.", outbox.waiting)
            yield GaugeMetricFamily(
                "lava_proxy_outbox_dead_letters", "Usage records that are not reported by themselves.", outbox.dead
            )
        if self._reconciled is not None:
            yield GaugeMetricFamily(
                "lava_proxy_ledger_reconciled_timestamp_seconds",
                "When this daemon last had no cost to read from Lava, or read them all; 0: not yet.",
                self._reconciled(),
            )
        build = GaugeMetricFamily("lava_proxy_build_info", "Always 1; says which version runs.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

    def _bounded(self, known: dict[str | None, str], name: str | None) -> str:
        label = known.get(name)
        if label is None:
            label = name if name is not None and len(known) <= _MAX_LABELS else _NONE
            if label is not _NONE:
                known[name] = label
        return label

    def _of(self, project: str, provider: str) -> _Series:
        series = self._series.get((project, provider))
        if series is None:
            if len(self._series) >= _MAX_SERIES:
                project = provider = _NONE
            series = self._series.setdefault((project, provider), _Series())
        return series

    def _find(self, project: str | None, provider: str | None) -> _Series:
        series = self._of(self._bounded(self._projects, project), self._bounded(self._providers, provider))
        if len(self._found) < _MAX_SERIES:
            self._found[project, provider] = series
        return series


class _Series:
    """The counters of one project and one provider; for seconds a counter per bucket, one for +Inf, and their sum."""

    __slots__ = ("duration", "first_byte", "requests")

    def __init__(self) -> None:
        self.requests: dict[tuple[int | None, str], int] = {}
        self.first_byte: list[float] = [0] * (len(_FIRST_BYTE) + 1) + [0.0]
        self.duration: list[float] = [0] * (len(_DURATION) + 1) + [0.0]


def _cumulative(bounds: tuple[float, ...], counts: list[float]) -> list[tuple[str, float]]:
    """Return the buckets in the format's cumulative form: each includes all lower ones."""
    total = 0.0
    buckets = []
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=False):
        total += count
        buckets.append((bound, total))
    return buckets
