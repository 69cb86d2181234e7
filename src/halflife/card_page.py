"""The data card as one page that asks nothing of a network: pictures drawn in place, light and dark."""

import html
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from halflife.splits import duration

STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5c6470; --line: #d9dde3; --paper: #fff;
  --bar: #3b6fb6; --other: #d97b29; --note: #fff4e5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3af; --line: #343b45;
  --paper: #15181d; --bar: #7aa7e0; --other: #f0a35e; --note: #33281a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; }
code { overflow-wrap: anywhere; }
.soft, figcaption, th { color: var(--soft); }
.soft { font-size: .9rem; }
.note { background: var(--note); border-left: 4px solid var(--other); padding: .6rem .8rem; margin: .6rem 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .5rem;
  margin: 1rem 0; }
.tiles div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem; }
.tiles b { display: block; font-size: 1.2rem; }
figure { margin: 0; }
figcaption { font-size: .85rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.bar { fill: var(--bar); }
.other { fill: var(--other); }
.axis { stroke: var(--line); }
.cut { stroke: var(--ink); stroke-dasharray: 4 3; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); font-weight: normal; }
th:first-child, td:first-child { text-align: left; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
"""
WIDTH, HEIGHT = 380, 170
LEFT, BOTTOM, TOP = 6, 22, 16
SPANS = (
    (1 / 86_400, "1 s"),
    (1 / 1_440, "1 min"),
    (1 / 24, "1 h"),
    (1.0, "1 day"),
    (7.0, "1 week"),
    (30.0, "30 days"),
    (365.0, "1 year"),
    (3_650.0, "10 years"),
)
"""Days, and what a person calls them."""


def page(found: dict[str, Any]) -> str:
    """The whole page.

    Args:
        found: from `card.describe`; every word of it is escaped.
    """
    name = str(found["source"]).removesuffix(".read").rpartition(".")[2]
    body = "".join(
        [
            f"<h1>Data card: {_safe(name)}</h1>",
            f'<p class="soft">fingerprint <code>{_safe(found["fingerprint"])}</code>, source '
            f"<code>{_safe(found['source'])}</code>; user ids are "
            f"{'keyed hashes' if found['pseudonymous'] else 'those of the log'}; made by "
            "<code>python -m halflife.build</code></p>",
            *(f'<p class="note">{_safe(warning)}</p>' for warning in found["warnings"]),
            _tiles(found),
            "<h2>Time and splits</h2>",
            _timeline(found),
            f"<p>Split: {_safe(found['split_rule']['name'])}.</p>",
            _splits(found["split"]),
            "<h2>Users and events</h2>",
            _pictures(found),
            _quantiles(found),
            "<h2>Left out</h2>",
            _dropped(found["dropped"]),
            "<h2>What looks wrong</h2>",
            _quality(found["quality"]),
            "<h2>No look into the future</h2>",
            _leakage(found["leakage"]),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data card: {_safe(name)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def date(seconds: int) -> str:
    """A moment as a person reads it, in UTC.

    >>> date(1_704_067_200)
    '2024-01-01 00:00'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _safe(text: Any) -> str:
    """A word of the log, as it may stand in a page."""
    return html.escape(str(text), quote=True)


def _tiles(found: dict[str, Any]) -> str:
    """The counts, at a glance."""
    counts = found["counts"]
    shown = [(f"{counts[k]:,}", k) for k in ("users", "items", "events", "impressions", "candidates")]
    shown.append((f"{counts['positives'] / counts['candidates']:.1%}", "of candidates clicked"))
    shown.append((f"{found['events']['repeat_share']:.1%}", "of events repeat an item"))
    if "vectors" in found:
        numbers = f"of items with a vector of {found['vectors']['dimension']:,}"
        shown.append((f"{found['vectors']['share']:.1%}", numbers))
    if found["best_auc"] is not None:
        shown.append((f"{found['best_auc']:.4f}", "best possible AUC"))
    return '<div class="tiles">' + "".join(f"<div><b>{v}</b>{_safe(k)}</div>" for v, k in shown) + "</div>"


def _svg(parts: Iterable[str], label: str) -> str:
    """A picture with a name for those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_safe(label)}">{"".join(parts)}</svg>'
    )


def _figure(picture: str, caption: str) -> str:
    """A picture and what it shows; the caption's own words are escaped already."""
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _bars(counts: Sequence[float], kind: str = "bar") -> str:
    """Bars side by side over the whole width, and the line they stand on."""
    most = max(1, *counts)
    step = (WIDTH - 2 * LEFT) / max(len(counts), 1)
    floor = HEIGHT - BOTTOM
    marks = [
        f'<rect class="{kind}" x="{LEFT + i * step + 0.5:.1f}" y="{floor - h:.1f}" '
        f'width="{max(step - 1, 0.8):.1f}" height="{h:.1f}"/>'
        for i, h in enumerate(c / most * (floor - TOP) for c in counts)
        if h > 0
    ]
    return "".join(marks) + f'<line class="axis" x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>'


def _words(marks: Iterable[tuple[float, str]]) -> str:
    """Words below the axis at places 0 … 1, leaving out those that would touch the one before."""
    out, last = [], -1e9
    for place, word in marks:
        x = min(max(LEFT + place * (WIDTH - 2 * LEFT), 3 * len(word) + 2), WIDTH - 3 * len(word) - 2)
        if x - last > 6.5 * len(word) + 8:
            out.append(f'<text x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="middle">{_safe(word)}</text>')
            last = x
    return "".join(out)


def _histogram(title: str, facts: dict[str, Any], days: bool, note: str) -> str:
    """Bars over a logarithmic axis, of numbers or of times in days."""
    if not facts["bars"]:
        return ""
    edges = facts["edges"]
    first, last = edges[0], edges[-1]
    ticks = SPANS if days else [(float(10**k), f"{10**k:,}") for k in range(10)]
    marks = [
        (math.log(x / first) / math.log(last / first), w)
        for x, w in ticks
        if first * 0.999 <= x <= last * 1.001
    ]
    middle = facts["p50"]
    median = duration(middle) if days else f"{middle:,.0f}"
    zeros = f"; {facts['zeros'] / facts['count']:.1%} are 0 and not drawn" if facts["zeros"] else ""
    picture = _svg([_bars(facts["bars"]), _words(marks)], f"{title}: histogram, median {median}")
    return _figure(picture, f"<b>{_safe(title)}</b>: median {median}{zeros}. {_safe(note)}")


def _pictures(found: dict[str, Any]) -> str:
    """What decides whether a half-life can be found: how many clicks, over how long, how far apart."""
    events, ages = found["events"], found["history_ages"]
    rank = ages["unit"] == "rank"
    out = [_histogram("Events of a user", events["per_user"], False, "")]
    if "gap_days" in events:
        out += [
            _histogram(
                "From one event of a user to the next",
                events["gap_days"],
                True,
                f"{events['same_second_share']:.1%} follow in the same second and are not counted.",
            ),
            _histogram(
                "From a user's first event to the last",
                events["user_span_days"],
                True,
                f"{events['one_sitting_share'] or 0:.1%} of the users with several events never paused for "
                "30 minutes.",
            ),
        ]
    sampled = f"Of {ages['sampled']:,} impressions in train, histories as they are cut."
    title = (
        "Places of clicks in training histories, the newest 0"
        if rank
        else "Ages of clicks in training histories"
    )
    out.append(_histogram(title, ages["age"], not rank, sampled))
    out.append(_histogram("Clicks of a training history", ages["clicks"], False, ""))
    if "text" in found:
        text = found["text"]
        bars = text["bars"]
        n = len(bars) - 1
        marks = [(k / n, str(k)) for k in range(0, n + 1, max(1, n // 8))]
        picture = _svg([_bars(bars), _words(marks)], f"tokens of a text: median {text['median']:g}")
        caption = (
            f"<b>Tokens of an item's text</b> ({_safe(text['tokenizer'])}): median {text['median']:g}; "
            f"{text['at_the_cut']:.1%} fill {text['max_tokens']}, where texts are cut; "
            f"{text['without_text']:,} items have none."
        )
        out.append(_figure(picture, caption))
    if "by_hour_utc" in events:
        marks = [(h / 24 + 1 / 48, f"{h}h") for h in range(0, 24, 3)]
        picture = _svg([_bars(events["by_hour_utc"]), _words(marks)], "events by hour of the day, UTC")
        out.append(_figure(picture, "<b>Events by hour of the day</b>, UTC."))
    return f'<div class="grid">{"".join(out)}</div>'


def _timeline(found: dict[str, Any]) -> str:
    """Events and impressions over time, and where val and test begin."""
    line = found["timeline"]
    first, whole = line["first_s"], max(line["step_s"] * len(line["impressions"]), 1)
    marks = [(f, date(first + int(f * whole))[:10]) for f in (0.0, 0.5, 1.0)]
    drawn = [("Events", line["events"], "bar")] if line["events"] is not None else []
    drawn.append(("Impressions", line["impressions"], "other"))
    out = []
    for title, counts, kind in drawn:
        cuts = ""
        marked = () if found["split_rule"]["leaks"] else (("val", "end", -4), ("test", "start", 4))
        for split, end, aside in marked:
            x = LEFT + (line["starts_s"][split] - first) / whole * (WIDTH - 2 * LEFT)
            if x > WIDTH - 30:  # no room for the word behind the line
                end, aside = "end", -4
            cuts += f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{HEIGHT - BOTTOM}"/>'
            height = 12 if split == "val" else 24
            cuts += f'<text x="{x + aside:.1f}" y="{height}" text-anchor="{end}">{split}</text>'
        picture = _svg([_bars(counts, kind), cuts, _words(marks)], f"{title} over time")
        step = duration(line["step_s"] / 86_400)
        dashed = "; dashed: where val and test begin" if marked else ""
        out.append(_figure(picture, f"<b>{title}</b>, a bar each {step}{dashed}."))
    return f'<div class="grid wide">{"".join(out)}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself on a narrow screen."""
    top = "".join(f"<th>{_safe(word)}</th>" for word in head)
    body = "".join("<tr>" + "".join(f"<td>{_safe(word)}</td>" for word in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _splits(splits: dict[str, Any]) -> str:
    """What each split holds, and what is new in it."""
    show = [
        ("impressions", lambda s: f"{s['impressions']:,}"),
        ("first (UTC)", lambda s: date(s["first_s"])),
        ("last (UTC)", lambda s: date(s["last_s"])),
        ("users", lambda s: f"{s['users']:,}"),
        ("candidates", lambda s: f"{s['candidates']:,}"),
        ("clicked", lambda s: f"{s['positive_rate']:.2%}"),
    ]
    rows = [[name, *(value(split) for split in splits.values())] for name, value in show]
    for name, key, form in (
        ("cold users", "cold_users", "{:,}"),
        ("impressions of cold users", "cold_user_impressions", "{:.1%}"),
        ("cold items", "cold_items", "{:,}"),
        ("candidates that are cold items", "cold_item_candidates", "{:.1%}"),
    ):
        rows.append([name, *(form.format(s[key]) if key in s else "" for s in splits.values())])
    note = "Cold: without any event before the split began."
    return _table(["", *splits], rows) + f'<p class="soft">{note}</p>'


def _quantiles(found: dict[str, Any]) -> str:
    """The numbers behind the pictures."""
    events, ages = found["events"], found["history_ages"]
    rank = ages["unit"] == "rank"
    shown = [("events of a user", events["per_user"], False)]
    if "gap_days" in events:
        shown += [
            ("gap between a user's events", events["gap_days"], True),
            ("user span", events["user_span_days"], True),
        ]
    shown += [
        ("age of a click in a history", ages["age"], not rank),
        ("clicks of a history", ages["clicks"], False),
    ]
    rows = []
    for name, facts, days in shown:
        values = [facts[p] for p in ("p5", "p25", "p50", "p75", "p95")]
        rows.append([name, *(duration(v) if days else "none" if v is None else f"{v:,.0f}" for v in values)])
    share = f"{events['top_percent_share']:.1%}"
    note = f"Quantiles are right to 1 %. The hundredth of the items most used has {share} of the events; "
    note += f"{events['items_without_event']:,} items have none."
    return _table(["", "5 %", "25 %", "median", "75 %", "95 %"], rows) + f'<p class="soft">{_safe(note)}</p>'


def _leakage(proof: dict[str, int]) -> str:
    """What the build proved, and how ties in time are taken."""
    return (
        f"<p>The build checked {proof['histories_checked']:,} histories on the data itself and found "
        f"{proof['future_events_found']:,} events at or after their impression. Events of the impression's "
        "own second are not in its history.</p>"
    )


def _quality(found: list[dict[str, Any]]) -> str:
    """Rows that look wrong, with an example each."""
    rows = [[f["what"], f"{f['rows']:,}", "kept" if f["kept"] else "left out", f["example"]] for f in found]
    return _table(["what", "rows", "", "for example"], rows) if rows else "<p>Nothing was found.</p>"


def _dropped(dropped: dict[str, int]) -> str:
    """Rows left out, by reason."""
    rows = [[reason, f"{n:,}"] for reason, n in dropped.items()]
    return _table(["reason", "rows"], rows) if rows else "<p>Nothing was left out.</p>"
