"""What the report shows of one clip: its preview, where it lies, its number beside the threshold, all its scores."""

from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from tasks.pages.page import name_of
from tasks.pages.report_examples import Preview, preview
from tasks.pages.report_plots import number
from tasks.tables.limit import Limit, value_of
from tasks.tables.step import Row, side_by_side

# Bytes of one preview and of all: in base64 they stay under 12 MB, whatever the number of reasons.
PREVIEW_BYTES = 48_000
ALL_PREVIEWS_BYTES = 9_000_000
BOXES_SHOWN = 40


class Cards:
    """Turns rows into what the page shows of them; a preview is made once, however often its clip is shown."""

    def __init__(self, tables: Sequence[str], allowed: Sequence[Limit], labels: dict[str, str]) -> None:
        """``labels``: the scores that are shown, with their short names."""
        self.tables, self.allowed, self.labels = tables, allowed, labels
        self._previews: dict[Any, Preview | None] = {}

    def make_previews(self, wanted: Iterable[tuple[int, Row]]) -> None:
        """Make the previews of all rows that will be shown, each given with the number of its table."""
        new = {self._key(row): (self.tables[table], row) for table, row in wanted}
        most = min(PREVIEW_BYTES, ALL_PREVIEWS_BYTES // max(1, len(new)))
        made = side_by_side(lambda item: preview(item[0], item[1], most), list(new.values()))
        self._previews = dict(zip(new, made, strict=True))

    def card(self, row: Row, limit: Limit | None = None, boxes: Sequence[str] = ()) -> dict[str, Any]:
        shown = self._previews.get(self._key(row))
        headline, sign = headline_of(row, limit)
        return {
            "id": row["clip_id"] or row["source_id"] or "",
            "what": "clip" if row["clip_id"] else "source",
            "name": name_of(row["source_uri"]),
            "uri": row["source_uri"],
            "span": span_of(row),
            "keep": bool(row["keep"]),
            "preview": shown,
            "marks": marks_over(row, boxes) if shown else "",
            "headline": headline,
            "sign": sign,
            "scores": self._scores(row),
            "reasons": row["rejected_by"],
        }

    def _scores(self, row: Row) -> list[dict[str, Any]]:
        """What was measured; nothing for a duplicate or a shot too short, whose crop is not yet one."""
        values = {column: value_of(row, column) for column in self.labels if column != "duration_s"}
        if all(value is None for column, value in values.items() if column != "crop_area"):
            return []
        scores = []
        for column, value in values.items():
            guilty = [limit for limit in self.allowed if limit.column == column and limit.reason in row["rejected_by"]]
            bounds = [bound for limit in guilty for bound in (limit.low, limit.high) if bound is not None]
            text = number(value, bounds)
            scores.append({"label": self.labels[column], "column": column, "text": text, "bad": bool(guilty)})
        return scores

    def _key(self, row: Row) -> tuple[Any, ...]:
        return row["source_uri"], row["start_s"], row["end_s"]


def span_of(row: Row) -> str:
    """Where in its source a clip lies, as ``1:02.5 to 1:07.0``."""
    if row["start_s"] is None:
        return ""
    return f"{_clock(row['start_s'])} to {_clock(row['end_s'])}" if row["duration_s"] else "image"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds * 10), 600)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest / 10:04.1f}" if minutes >= 60 else f"{minutes}:{rest / 10:04.1f}"


def headline_of(row: Row, limit: Limit | None) -> tuple[str, str]:
    """A clip's number and how it lies to the threshold: ``31.2``, ``< 40``."""
    if limit is None:
        return "", ""
    value = value_of(row, limit.column)
    bounds = [bound for bound in (limit.low, limit.high) if bound is not None]
    if value is None:
        return "not measured", ""
    if not bounds:
        return number(value), ""
    low, high = limit.low, limit.high
    if low is not None and (high is None or abs(value - low) <= abs(value - high)):
        return number(value, bounds), f"{'<' if value < low else '≥'} {number(low)}"
    assert high is not None
    return number(value, bounds), f"{'>' if value > high else '≤'} {number(high)}"


def marks_over(row: Row, boxes: Sequence[str]) -> Markup:
    """What training sees of the frame (the rest is dimmed), and the boxes found, as SVG to lie over the preview."""
    if row["crop_w"] is None:
        return Markup("")
    width, height, x, y, w, h = (row[name] for name in ("width", "height", "crop_x", "crop_y", "crop_w", "crop_h"))
    shapes = []
    if (w, h) != (width, height):
        shapes.append(f'<path class="dim" d="M0 0h{width}v{height}H0zM{x} {y}v{h}h{w}v-{h}z"/>')
        shapes.append(f'<rect class="crop" x="{x}" y="{y}" width="{w}" height="{h}"/>')
    for column in boxes:
        kind = column.split("_")[0]
        shapes += [
            f'<rect class="{kind}" x="{b["x"]}" y="{b["y"]}" width="{b["w"]}" height="{b["h"]}"/>'
            for b in (row[column] or [])[:BOXES_SHOWN]
        ]
    view = f'<svg class="marks" viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(shapes)}</svg>'
    return Markup(view if shapes else "")
