"""The table: each figure of PERFORMANCE's goals, what was measured, and whether it was reached; then every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxies import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from book import Book
    from hotpath import Profile

KEEP = "<!-- what stands below this line is written by hand, and kept -->"
NOTES = "## Notes: profile of the hot path and the next thing to cut"
LEDGER, BOOKS = "ledger", "books"
"""The sections that ``ledger.py`` and ``books.py`` write; kept when the rest is written anew."""
OURS = "lava-proxy"


@dataclass(frozen=True)
class Figure:
    """One line of the goals. ``met`` is None where nothing was measured; then ``measured`` says why."""

    name: str
    goal: str
    measured: str
    met: bool | None


def _figure(
    name: str, goal: str, value: float | None, met: bool, measured: str, why: str = "not in this run"
) -> Figure:
    return Figure(name, goal, why, None) if value is None else Figure(name, goal, measured, met)


def _n(value: float | None, form: str = "{:.2f}") -> str:
    return "–" if value is None else form.format(value)


def figures(book: Book, reference: str) -> list[Figure]:
    """The goals in PERFORMANCE's order, ratios first."""
    return [*_ratios(book, reference), *_times(book), *_streams(book, reference), *_states(book)]


def _rate(book: Book, row: str, target: str) -> str:
    return _n(book.median(row, target, "per_s"), "{:,.0f}")


def _against(book: Book, row: str, reference: str, name: str, goal: float, unit: str = "requests/s") -> Figure:
    value = book.ratio(row, OURS, reference, "per_s")
    measured = f"{_n(value)} × ({_rate(book, row, OURS)} of {_rate(book, row, reference)} {unit})"
    own, other = book.median(row, OURS, "cpu_us"), book.median(row, reference, "cpu_us")
    if own and other:
        measured += f"; by processor time {other / own:.2f} × ({own:.0f} to {other:.0f} µs)"
    return _figure(name, f"≥ {goal:g} ×", value, (value or 0) >= goal, measured, _why(book, row, reference))


def _why(book: Book, row: str, *names: str) -> str:
    for name in names:
        for key in (f"{row}, {name}", name):
            if key in book.reasons:
                return f"not measured: {one_line(book.reasons[key], 80)}"
    return "not in this run"


def _ratios(book: Book, reference: str) -> Iterator[Figure]:
    row = "requests c=16"
    yield _against(book, row, reference, f"requests/s at c=16, small JSON, against {reference}", 0.20)
    for peer, goal in (("node http-proxy", 1.5), ("Portkey", 15.0), ("LiteLLM", 100.0)):
        yield _against(book, row, peer, f"… against {peer}", goal)
    yield _against(book, "TLS upstream c=16", "nginx", "TLS upstream, requests/s at c=16 against nginx", 0.15)
    for which in ("request", "answer"):
        yield _against(book, f"1 MiB {which} c=8", reference, f"1 MiB {which} bodies against {reference}", 0.5)
    yield _against(
        book, "SSE events, 16 streams", reference, f"SSE events/s per core against {reference}", 0.6, "events/s"
    )
    value = book.ratio("requests c=256", OURS, OURS, "per_s", other_row=row)
    rates = f"{_rate(book, 'requests c=256', OURS)} of {_rate(book, row, OURS)} requests/s"
    name = "requests/s at c=256 against c=16 (no collapse)"
    yield _figure(name, "≥ 0.6 ×", value, (value or 0) >= 0.6, f"{_n(value)} × ({rates})")
    on, off = "everything on", "everything off"
    value = book.ratio("features c=16", on, off, "per_s")
    rates = f"{_rate(book, 'features c=16', on)} of {_rate(book, 'features c=16', off)} requests/s"
    yield _figure(
        "all features on against all off", "≥ 0.75 ×", value, (value or 0) >= 0.75, f"{_n(value)} × ({rates})"
    )
    row, on, off = "recording c=16", "ledger on", "ledger off"
    value = book.ratio(row, on, off, "per_s")
    own, other = book.median(row, on, "cpu_us"), book.median(row, off, "cpu_us")
    measured = f"{_n(value)} × ({_rate(book, row, on)} of {_rate(book, row, off)} requests/s); "
    measured += f"processor time {_n(other, '{:.0f}')} to {_n(own, '{:.0f}')} µs"
    yield _figure("ledger on against off at c=16", "≥ 0.95 ×", value, (value or 0) >= 0.95, measured)


def _times(book: Book) -> Iterator[Figure]:
    p50, p99 = (book.difference("requests c=1", OURS, "direct", figure) for figure in ("p50_ms", "p99_ms"))
    met = p50 is not None and p99 is not None and p50 <= 0.30 and p99 <= 0.8
    yield _figure("added p50 / p99 at c=1 against direct", "≤ 0.30 / ≤ 0.8 ms", p50, met, f"{_n(p50)} / {_n(p99)} ms")
    added = book.difference("recording c=1", "ledger on", "ledger off", "p50_ms")
    measured = f"{_n(added, '{:.3f}')} ms (median)"
    yield _figure("added p50 at c=1 by the ledger", "≤ 0.02 ms", added, (added or 0) <= 0.02, measured)
    added = book.difference("time to first event", OURS, "direct", "p50_ms")
    measured = f"{_n(added)} ms (median)"
    yield _figure("added time to first SSE event, one paced stream", "≤ 0.5 ms", added, (added or 9) <= 0.5, measured)


def _streams(book: Book, reference: str) -> Iterator[Figure]:
    found: Mapping[str, Any] | None = book.facts.get(f"paced {OURS}")
    name = f"{_n(found['streams'] if found else 1000, '{:,.0f}')} paced streams × 20 events/s"
    goal = "≤ 60 % of a core, p99 event delay ≤ 20 ms, RSS ≤ 120 MiB, 0 cut"
    if found is None:
        yield Figure(name, goal, _why(book, f"paced {OURS}", f"paced {OURS}"), None)
        return
    share, delay, rss = found["cpu_share"], found["delay_ms"]["p99"], found["rss_peak_mib"]
    met = share <= 0.60 and delay <= 20 and rss <= 120 and found["cut"] == 0 and found["whole"] == found["streams"]
    measured = f"{share:.0%} of a core, p99 {delay:.1f} ms, RSS {rss:.0f} MiB, {found['cut']} cut"
    for other in ("direct", reference):
        if f"paced {other}" in book.facts:
            measured += f" ({other}: p99 {book.facts[f'paced {other}']['delay_ms']['p99']:.1f} ms)"
    yield Figure(name, goal, measured, met)


def _states(book: Book) -> Iterator[Figure]:
    found = book.facts.get("memory")
    many = _n(found["requests"] if found else 100_000, "{:,.0f}")
    goal = "≤ 60 MiB; ≤ 55 MiB; + ≤ 5 MiB"
    name = f"idle RSS; without the ledger; after {many} requests"
    if found is None:
        yield Figure(name, goal, _why(book, "memory", "memory"), None)
    else:
        more = found["after_mib"] - found["idle_mib"]
        measured = f"{found['idle_mib']:.1f} MiB; {found['off_mib']:.1f} MiB; + {more:.1f} MiB, of which {found['after_mib'] - found['warm_mib']:.1f} after the first window"
        met = found["idle_mib"] <= 60 and found["off_mib"] <= 55 and more <= 5 and not found["wrong"]
        yield Figure(name, goal, measured, met)
    start, usage = book.facts.get("start"), book.facts.get("help")
    met = (start or 9) <= 0.8 and (usage or 9) <= 0.25
    measured = f"{_n(start)} s; {_n(usage)} s"
    yield _figure(
        "cold start to ready; `--help`", "≤ 0.8 s; ≤ 0.25 s", start, met, measured, _why(book, "start", "start")
    )
    left = book.facts.get("cancels")
    name = f"after {_n(left['cancelled'] if left else 10_000, '{:,.0f}')} cancelled requests"
    goal = "pool, tasks, descriptors as before"
    if left is None:
        yield Figure(name, goal, _why(book, "cancels", "cancels"), None)
        return
    before, after = left["before"], left["after"]
    words = {"descriptors": "descriptors", "upstream": "upstream connections", "in_flight": "requests in flight"}
    measured = ", ".join(f"{word} {before[key]} → {after[key]}" for key, word in words.items())
    measured += f", RSS {before['rss_mib']:.1f} → {after['rss_mib']:.1f} MiB; then {left['good_after']} good, {left['wrong_after']} not"
    yield Figure(name, goal, measured, left["as_before"] and left["good_after"] > 0 and not left["wrong_after"])


# --- as text ---------------------------------------------------------------------------------------------------------


def one_line(text: str, most: int = 300) -> str:
    """Without line ends, and not long."""
    words = " ".join(text.split())
    return words if len(words) <= most else words[: most - 1] + "…"


def _table(head: list[str], rows: list[list[str]], *, markdown: bool) -> list[str]:
    """Lines of a table: Markdown, or columns for a terminal."""
    if markdown:
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]


def goals(found: list[Figure], *, markdown: bool) -> list[str]:
    """The table of goals."""
    words = {True: "met", False: "**not met**" if markdown else "NOT MET", None: "–"}
    rows = [[each.name, each.goal, each.measured, words[each.met]] for each in found]
    return _table(["figure", "goal", "measured", ""], rows, markdown=markdown)


def rows(book: Book, reference: str, *, markdown: bool) -> list[str]:
    """Every row and column that was measured, with the rounds' spread."""
    lines = []
    for (row, column), rounds in book.values.items():
        rate = book.median(row, column, "per_s")
        of = book.ratio(row, column, reference, "per_s") if book.has(row, reference) else None
        spread = book.spread(row, column, "per_s" if rate is not None else "p50_ms")
        cells = [_n(rate, "{:,.0f}"), _n(of), _n(book.median(row, column, "p50_ms"), "{:.3f}")]
        cells += [_n(book.median(row, column, "p99_ms"), "{:.2f}"), _n(book.median(row, column, "cpu_us"), "{:.1f}")]
        wrong = sum(int(each.get("wrong", 0)) for each in rounds)
        lines.append([row, column, *cells, _n(spread, "{:.0%}"), str(wrong) if wrong else "–"])
    head = ["row", "column", "per s", f"× {reference}", "p50 ms", "p99 ms", "CPU µs each", "spread", "wrong"]
    return _table(head, lines, markdown=markdown)


def features(book: Book, *, markdown: bool) -> list[str]:
    """What each feature costs: the row without it against the one with everything."""
    row, base = "features c=16", "everything on"
    base_cpu = book.median(row, base, "cpu_us")
    lines = []
    for name in VARIANTS:
        ratio, cpu = book.ratio(row, name, base, "per_s"), book.median(row, name, "cpu_us")
        if ratio is None or cpu is None or base_cpu is None:
            continue
        saved = "" if name == base else f"{base_cpu - cpu:+.1f}"
        lines.append([name, _rate(book, row, name), f"{ratio:.2f}", f"{cpu:.1f}", saved])
    head = ["lava-proxy", "requests/s c=16", "× everything on", "CPU µs each", "µs saved"]
    return _table(head, lines, markdown=markdown) if lines else []


def hot_path(found: Profile, *, markdown: bool) -> list[str]:
    """The profile, in the function's own lines and with what it calls."""
    own = _table(["own lines", "share"], [[name, f"{share:.1%}"] for name, share in found.own], markdown=markdown)
    all_ = _table(
        ["with what it calls", "share"], [[name, f"{share:.1%}"] for name, share in found.inclusive], markdown=markdown
    )
    files = _table(["file", "share"], [[name, f"{share:.1%}"] for name, share in found.modules], markdown=markdown)
    return [*own, "", *all_, "", *files]


def section(text: str, name: str) -> str:
    """The section of this name that another command wrote, with its marks; empty if there is none."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        return ""
    return begin + text.partition(begin)[2].partition(end)[0] + end


def with_section(text: str, name: str, body: str) -> str:
    """``text`` with the section of this name in place of its former one, else before the notes."""
    new = f"<!-- {name} -->\n\n{body}\n\n<!-- end of {name} -->"
    if former := section(text, name):
        return text.replace(former, new)
    before, notes, after = text.partition(NOTES)
    return f"{before.rstrip()}\n\n{new}\n\n{notes}{after}".strip() + "\n"


def document(
    book: Book,
    reference: str,
    about: Mapping[str, str],
    profiles: Mapping[str, Profile],
    command: str,
    former: str,
) -> str:
    """The text of RESULTS.md. What was written by hand at the end of the `former` one is kept."""
    lines = ["# Results", "", f"Written by `{command}`. What is measured and how: [README.md](README.md).", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", "## Figures to reach", "", *goals(figures(book, reference), markdown=True)]
    costs = features(book, markdown=True)
    if costs:
        lines += ["", "## The cost of each feature", "", *costs, ""]
        lines += ["Usage counting and metrics have no switch: they are in every row."]
    lines += ["", "## Every row", "", "Medians of the rounds; the spread is (largest − smallest) / median.", ""]
    lines += rows(book, reference, markdown=True)
    missing = {**book.reasons, **{name: f"{count} answers were wrong" for name, count in book.wrong.items()}}
    if missing:
        lines += ["", "## Missing or wrong", ""]
        lines += [f"- {name}: {one_line(why)}" for name, why in missing.items()]
    for name in (LEDGER, BOOKS):
        if own := section(former, name):
            lines += ["", own]
    lines += ["", NOTES, ""]
    for what, found in profiles.items():
        lines += [f"### {what[0].upper()}{what[1:]}", ""]
        lines += [f"py-spy, {found.samples} samples of the loop's thread, 16 connections, everything on.", ""]
        lines += [*hot_path(found, markdown=True), ""]
    kept = former.partition(KEEP)[2].strip("\n")
    return "\n".join([*lines, KEEP, "", kept or "(No notes yet.)", ""])
