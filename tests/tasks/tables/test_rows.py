"""Narrow tables are joined by the ids of their rows, in the order of the steps."""

from pathlib import Path

import pytest

from tasks.tables.rows import joined, narrow
from tasks.tables.schema import fields_of
from tests.tasks.rows import clip, read, tables, write

SILENT = {"clip_id": None, "start_s": None, "width": None}


def test_the_joined_tables_of_a_shard_say_what_its_rows_say(tmp_path: Path) -> None:
    rows = [clip(clip_id="c0"), clip(clip_id="c1", keep=False, rejected_by=["too_short"], text_area=None)]
    for row, found in zip(rows, joined(tables(tmp_path, "buckets", rows)), strict=True):
        for name, value in row.items():
            assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_every_source_has_a_row_also_the_one_without_clips(tmp_path: Path) -> None:
    good, broken = clip(source_uri="a"), clip(source_uri="b", source_id="00bb", width=None, height=None)
    scanned = write(tmp_path, "scan", [good, broken | {"error": "scan: b: truncated"}])
    cut = write(tmp_path, "cut", [good, SILENT | {"source_uri": "b"}])
    rows = joined([scanned, cut])
    assert [(row["source_uri"], row["clip_id"]) for row in rows] == [("a", "c0"), ("b", None)]
    assert rows[1]["source_id"] == "00bb"
    assert rows[1]["error"] == "scan: b: truncated"
    assert rows[1]["rejected_by"] == ["error"]


def test_reasons_are_in_the_order_of_the_steps_each_once_and_the_first_error_stands(tmp_path: Path) -> None:
    row = clip()
    given = [
        write(tmp_path, "scan", [row]),
        write(tmp_path, "dedup sources", [row | {"error": "embed: a.mp4: no", "rejected_by": ["duplicate_source"]}]),
        write(tmp_path, "cut", [row | {"rejected_by": ["too_short"]}]),
        write(tmp_path, "blur", [row | {"error": "blur: a.mp4: no"}]),
        write(tmp_path, "verdict", [row | {"rejected_by": ["text", "too_short", "motion_low"]}]),
    ]
    (found,) = joined(given)
    assert found["rejected_by"] == ["duplicate_source", "error", "too_short", "text", "motion_low"]
    assert found["error"] == "embed: a.mp4: no"


def test_without_a_table_of_clips_later_tables_add_to_the_sources(tmp_path: Path) -> None:
    scanned = write(tmp_path, "scan", [clip(error="first")])
    marked = write(tmp_path, "dedup sources", [clip(error="second", duplicate_of="00bb")])
    (row,) = joined([scanned, marked])
    assert (row["error"], row["rejected_by"], row["duplicate_of"]) == ("first", ["error"], "00bb")


def test_the_last_crop_stands_and_a_null_takes_nothing_away(tmp_path: Path) -> None:
    rows = [clip(clip_id="a"), clip(clip_id="b")]
    moved = [clip(clip_id="a", crop_x=10), clip(clip_id="b", crop_x=None)]
    again = [clip(clip_id="a", crop_x=20), clip(clip_id="b", crop_x=None)]
    uris = [write(tmp_path, step, own) for step, own in (("cut", rows), ("text", moved), ("overlays", again))]
    assert [row["crop_x"] for row in joined(uris)] == [20, 0]


def test_a_clip_that_a_later_table_does_not_have_is_null_there(tmp_path: Path) -> None:
    uris = [
        write(tmp_path, "cut", [clip(clip_id="a"), clip(clip_id="b")]),
        write(tmp_path, "blur", [clip(clip_id="a")]),
    ]
    assert [row["blur"] for row in joined(uris)] == [1000.0, None]


def test_a_source_has_the_size_of_each_of_its_clips(tmp_path: Path) -> None:
    sizes = [clip(clip_id="a", width=320), clip(clip_id="b", width=640)]
    rows = joined([write(tmp_path, "scan", [clip(width=320)]), write(tmp_path, "cut", sizes)])
    assert [row["width"] for row in rows] == [320, 640]


def test_what_is_not_of_a_step_is_left_out_of_its_table(tmp_path: Path) -> None:
    table = narrow([clip(), {"clip_id": "c1"}], fields_of("verdict"))
    assert table.column_names == ["clip_id", "keep", "error", "rejected_by"]
    assert table["keep"].to_pylist() == [True, None]
    assert "embedding" not in joined([write(tmp_path, "scan", [clip()]), write(tmp_path, "embed", [clip()])])[0]
    assert read(write(tmp_path, "verdict", [clip()]))[0]["clip_id"] == "c0"
