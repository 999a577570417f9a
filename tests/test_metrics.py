"""metrics.py: what happened is counted right, in Prometheus' format, within bounds, and cheaply."""

from __future__ import annotations

import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from proxy import __version__
from proxy.ledger.outbox import OutboxStatus
from proxy.ledger.writer import Status
from proxy.observe.metrics import Metrics
from proxy.protocol.record import Outcome, Record


def _samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def _record(
    project: str | None,
    provider: str | None,
    status: int | None,
    outcome: str,
    first_byte_s: float | None,
    duration_s: float,
) -> Record:
    record = Record("req_1", "POST", "/v1/chat/completions", 0.0, project, provider)
    record.status, record.outcome = status, Outcome(outcome)
    record.first_byte_s, record.duration_s = first_byte_s, duration_s
    return record


def _value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return _samples(metrics).get((name, frozenset(labels.items())))


def test_requests_are_counted_by_project_provider_status_and_outcome() -> None:
    """Every finished request adds one to its own series; what is unknown is a dash."""
    metrics = Metrics(lambda: 0)
    for _ in range(3):
        metrics.observe(_record("main", "openai", 200, "ok", 0.02, 0.3))
    metrics.observe(_record("main", None, 402, "lava_error", None, 0.1))
    metrics.observe(_record(None, None, None, "client_gone", None, 0.1))
    name = "lava_proxy_requests_total"
    assert _value(metrics, name, project="main", provider="openai", status="200", outcome="ok") == 3
    assert _value(metrics, name, project="main", provider="-", status="402", outcome="lava_error") == 1
    assert _value(metrics, name, project="-", provider="-", status="-", outcome="client_gone") == 1


def test_histograms_hold_every_duration_and_only_known_first_bytes() -> None:
    """Buckets are cumulative, a bound counts as below itself, count and sum fit; no first byte, no observation."""
    metrics = Metrics(lambda: 0)
    for first, whole in ((0.005, 0.05), (0.2, 2.0), (None, 9999.0)):
        metrics.observe(_record("p", "groq", 200, "ok", first, whole))
    where = {"project": "p", "provider": "groq"}
    early, late = "lava_proxy_first_byte_seconds", "lava_proxy_request_duration_seconds"
    assert _value(metrics, f"{early}_count", **where) == 2
    assert _value(metrics, f"{early}_bucket", le="0.005", **where) == 1
    assert _value(metrics, f"{early}_bucket", le="0.25", **where) == 2
    assert _value(metrics, f"{late}_count", **where) == 3
    assert _value(metrics, f"{late}_bucket", le="1800.0", **where) == 2
    assert _value(metrics, f"{late}_bucket", le="+Inf", **where) == 3
    total = _value(metrics, f"{late}_sum", **where)
    assert total is not None
    assert abs(total - 10001.05) < 0.001


def test_gauges_and_reloads() -> None:
    """Requests in flight are asked for, reloads and their failures are counted, the version is told."""
    in_flight = [2]
    metrics = Metrics(lambda: in_flight[0])
    assert _value(metrics, "lava_proxy_streams_in_flight") == 2
    in_flight[0] = 1
    assert _value(metrics, "lava_proxy_streams_in_flight") == 1
    metrics.config_reload(True)
    metrics.config_reload(False)
    assert _value(metrics, "lava_proxy_config_reloads_total") == 2
    assert _value(metrics, "lava_proxy_config_reload_failures_total") == 1
    assert _value(metrics, "lava_proxy_build_info", version=__version__) == 1


def test_labels_are_bounded() -> None:
    """Endless new names, statuses and outcomes cannot grow the exposition without end: they fall together as a dash."""
    metrics = Metrics(lambda: 0)
    for number in range(10_000):
        metrics.observe(_record(f"project-{number}", f"provider-{number % 7}", 200, "ok", 0.1, 0.1))
    samples = _samples(metrics)
    projects = {dict(labels).get("project") for _name, labels in samples} - {None}
    assert len(projects) <= 201
    assert "-" in projects
    total = sum(value for (name, _), value in samples.items() if name == "lava_proxy_requests_total")
    assert total == 10_000
    assert len(metrics.render()[0]) < 2_000_000


def test_two_of_them_do_not_meet() -> None:
    """Each Metrics counts for itself, and the library's global registry gets nothing of either."""
    from prometheus_client import REGISTRY, generate_latest

    first, second = Metrics(lambda: 0), Metrics(lambda: 0)
    first.observe(_record("p", "x", 200, "ok", None, 1.0))
    where = {"project": "p", "provider": "x", "status": "200", "outcome": "ok"}
    assert _value(second, "lava_proxy_requests_total", **where) is None
    assert _value(first, "lava_proxy_requests_total", **where) == 1
    assert b"lava_proxy" not in generate_latest(REGISTRY)


def test_nothing_heavy_is_loaded_before_the_figures_are_asked_for() -> None:
    """Counting needs no library: prometheus-client is loaded by the first look at /metrics, not by the start."""
    code = (
        "import sys; from proxy.observe.metrics import Metrics; from proxy.protocol.record import Record; m = Metrics(lambda: 0);"
        "m.observe(Record('req_1', 'GET', '/', 0.0)); assert 'prometheus_client' not in sys.modules; m.render();"
        "assert 'prometheus_client' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_the_ledgers_numbers_are_shown() -> None:
    """What waits to be written and to be reported, what is not reported by itself, and when costs were read."""
    status = Status(queued=3, dropped=2, written=40, lag_s=0.0, problem=None, schema=1)
    metrics = Metrics(lambda: 0, lambda: status, lambda: OutboxStatus(waiting=5, dead=1), lambda: 1.8e9)
    assert _value(metrics, "lava_proxy_ledger_queue") == 3
    assert _value(metrics, "lava_proxy_ledger_dropped_total") == 2
    assert _value(metrics, "lava_proxy_ledger_written_total") == 40
    assert _value(metrics, "lava_proxy_outbox_waiting") == 5
    assert _value(metrics, "lava_proxy_outbox_dead_letters") == 1
    assert _value(metrics, "lava_proxy_ledger_reconciled_timestamp_seconds") == 1.8e9
