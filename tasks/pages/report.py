"""Report: one self-contained page that shows why clips were rejected: each with its preview and its number.

Its size is bounded whatever the number of clips, and the same tables give the same bytes. It needs the tables only;
where the frame store was deleted, previews are placeholders. The page itself is report.html beside this file.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from markupsafe import Markup
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.context import TaskRunContext

from tasks.curation.buckets import ASPECTS
from tasks.pages.page import name_of, template
from tasks.pages.report_cards import Cards, span_of
from tasks.pages.report_examples import Place, choose, still
from tasks.pages.report_plots import histogram, number
from tasks.pages.report_survey import Strips, Survey, copies, rows_at, survey
from tasks.tables import storage
from tasks.tables.funnel import Stage, funnel, table_of, video_time
from tasks.tables.keys import root_of
from tasks.tables.limit import Limit, value_of
from tasks.tables.step import Row, side_by_side, step_task

NEAR, RANDOM = 4, 2
DUPLICATES = ("duplicate_source", "duplicate_clip")
SECTIONS = 40
WORDS = {
    "duplicate_source": "A better copy of the same video is among the sources.",
    "too_short": "The shot is shorter than a clip may be.",
    "duplicate_clip": "Another clip of the same source shows the same.",
}


def _strips(seen: Survey, reason: str, turn: int) -> tuple[list[Place], list[Place]]:
    """The places of a reason's rejected and kept examples. ``turn`` varies the random kept ones between reasons."""
    strips: Strips = seen.strips[reason]
    random = seen.kept_random.best
    start = turn * RANDOM % max(1, len(random))
    kept_random = [*random[start:], *random[:start]]
    rejected = choose(strips.rejected.best, strips.rejected_random.best, NEAR, RANDOM)
    return rejected, choose(strips.kept.best, kept_random, NEAR, RANDOM)


def _sections(tables: Sequence[str], seen: Survey, stages: Sequence[Stage], cards: Cards) -> list[dict[str, Any]]:
    """A section for each reason that rejected something, but for errors, which are a table of their own."""
    rejecting = {stage.reason: stage for stage in stages if stage.reason and stage.rejected and stage.reason != "error"}
    reasons = list(rejecting)[:SECTIONS]
    chosen = {reason: _strips(seen, reason, turn) for turn, reason in enumerate(reasons)}
    rows = rows_at(tables, [place for strips in chosen.values() for strip in strips for place in strip])
    doubles = {reason: [rows[place] for place in chosen[reason][0]] for reason in reasons if reason in DUPLICATES}
    originals = copies(tables, chain.from_iterable(doubles.values()))
    cards.make_previews([*((place[0], row) for place, row in rows.items()), *originals.values()])

    sections = []
    for reason, (rejected, kept) in chosen.items():
        limit = seen.strips[reason].limit
        if limit is None and reason == "too_short":
            limit = Limit(reason, "duration_s")
        boxes = limit.boxes if limit else ()
        key = limit.column if limit else None
        ordered = sorted(rejected, key=lambda place: _order(rows[place], limit))
        section: dict[str, Any] = {
            "reason": reason,
            "words": WORDS.get(reason) or (limit.words if limit else ""),
            "legend": limit.legend if limit else "",
            "column": key,
            "bound": _bound(limit),
            "stage": rejecting[reason],
            "alone": seen.alone[reason],
            "rejected": [cards.card(rows[place], limit, boxes) for place in ordered],
            "kept": [
                cards.card(rows[place], limit, boxes)
                for place in sorted(kept, key=lambda place: _order(rows[place], limit))
            ],
            "pairs": [],
        }
        if reason in doubles:
            section["pairs"] = [
                (
                    cards.card(row),
                    cards.card(originals[row["duplicate_of"]][1]) if row["duplicate_of"] in originals else None,
                )
                for row in doubles[reason]
            ]
        sections.append(section)
    return sections


def _order(row: Row, limit: Limit | None) -> tuple[float, str]:
    """Nearest to the threshold first."""
    value = value_of(row, limit.column) if limit else None
    bounds = [bound for bound in (limit.low, limit.high) if bound is not None] if limit else []
    far = min((abs(value - bound) for bound in bounds), default=0.0) if value is not None else float("inf")
    return far, row["clip_id"] or row["source_uri"]


def _bound(limit: Limit | None) -> str:
    if limit is None:
        return ""
    parts = [f"at least {number(limit.low)}"] if limit.low is not None else []
    return " and ".join(parts + ([f"at most {number(limit.high)}"] if limit.high is not None else []))


def _plots(seen: Survey) -> list[dict[str, Any]]:
    plots = []
    for column, spread in seen.spreads.items():
        if not spread.measured:
            continue
        notes = [(n, f"below {number(bound)}") for bound, n in spread.below.items()]
        notes += [(n, f"above {number(bound)}") for bound, n in spread.above.items()]
        shares = [f"{n:,} ({n / spread.measured:.1%}) {words}" if n else f"none {words}" for n, words in notes]
        plots.append(
            {
                "column": column,
                "meaning": seen.meanings.get(column, ""),
                "measured": spread.measured,
                "notes": shares,
                "svg": Markup(histogram(spread)),
                "log": spread.log,
            }
        )
    return plots


def _search(tables: Sequence[str], seen: Survey) -> dict[str, Any]:
    """The rows that the page can search, as compact JSON."""
    places = sorted(place for *_, place in seen.listed.best)
    rows = rows_at(tables, places)
    stills = side_by_side(lambda place: still(tables[place[0]], rows[place]), places)
    lines = []
    for place, picture in zip(places, stills, strict=True):
        row = rows[place]
        values = [number(value_of(row, column)) for column in seen.columns]
        head = [row["clip_id"], row["source_uri"], span_of(row), int(bool(row["keep"])), row["rejected_by"]]
        lines.append([*head, values, row["error"], picture])
    return {"scores": [seen.labels[column] for column in seen.columns], "rows": lines}


def _funnel_bars(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    first = {stage.unit: max(1, stage.entered) for stage in reversed(stages)}
    return [
        {
            "stage": stage,
            "left": 100 * stage.left / first[stage.unit],
            "lost": 100 * stage.lost / first[stage.unit],
            "time": "" if stage.left_s is None else video_time(stage.left_s),
        }
        for stage in stages
    ]


def _bucket_table(seen: Survey) -> dict[str, Any]:
    durations = sorted({duration for _, duration in seen.buckets})
    named = {aspect for aspect, _ in seen.buckets}
    aspects = [aspect for aspect in [*ASPECTS, *sorted(named - set(ASPECTS))] if aspect in named]
    return {
        "durations": durations,
        "aspects": aspects,
        "counts": seen.buckets,
        "most": max(seen.buckets.values(), default=1),
    }


def render(tables: Sequence[str], allowed: Sequence[Limit], stages: Sequence[Stage] | None = None) -> str:
    """The page as HTML, from the final tables and the limits that judged them, in the order of the funnel."""
    stages = stages or funnel(tables, [limit.reason for limit in allowed])
    seen = survey(tables, allowed)
    cards = Cards(tables, allowed, {column: seen.labels[column] for column in seen.columns})
    sections = _sections(tables, seen, stages, cards)
    sources = [stage for stage in stages if stage.unit == "sources"]
    clips = [stage for stage in stages if stage.unit == "clips"]
    quiet = [limit for limit in allowed if limit.reason not in {section["reason"] for section in sections}]
    return template("report.html").render(
        name=name_of(root_of(tables[0])),
        sources=sources[0].entered,
        bad_sources=next((stage.lost for stage in sources if stage.reason == "error"), 0),
        clips=clips[0].entered,
        kept=clips[-1].left,
        cut_time=video_time(clips[0].entered_s or 0.0),
        kept_time=video_time(clips[-1].left_s or 0.0),
        bars=[
            (unit, [bar for bar in _funnel_bars(stages) if bar["stage"].unit == unit]) for unit in ("sources", "clips")
        ],
        plots=_plots(seen),
        sections=sections,
        quiet=[(limit.reason, _bound(limit) or "switched off") for limit in quiet],
        errors=seen.errors,
        error_count=seen.error_count,
        buckets=_bucket_table(seen),
        search=_search(tables, seen),
        rows=seen.rows,
    )


@step_task("report")
def report(tables: list[str], allowed: list[Limit]) -> str:
    """Write OUT/report.html from the final tables; returns its URI.

    Inside a Prefect task run, the funnel becomes a table artifact and the page a link.
    """
    uri = storage.join(root_of(tables[0]), "report.html")
    stages = funnel(tables, [limit.reason for limit in allowed])
    page = render(tables, allowed, stages)
    with storage.writing(uri) as file:
        file.write(page.encode())
    if TaskRunContext.get():
        create_table_artifact(table_of(stages), key="curation-funnel", description="What each step let through")
        link = uri if "://" in uri else Path(uri).resolve().as_uri()
        create_link_artifact(link, link_text="report.html", key="curation-report", description=f"The report: `{uri}`")
    return uri
