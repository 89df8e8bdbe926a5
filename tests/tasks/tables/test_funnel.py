"""The funnel counts sources, then clips."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from tasks.tables.funnel import as_text, funnel, worst
from tests.tasks.rows import clip, wide

SOURCE = {"clip_id": None, "keep": False}
REASONS = ["text", "blur"]


def stage(stages, name, unit="clips"):
    return next(s for s in stages if s.name == name and s.unit == unit)


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    first = [
        clip(source_uri="a", clip_id="c0"),
        clip(source_uri="a", clip_id="c1", keep=False, rejected_by=["blur", "text"]),
        clip(source_uri="a", clip_id="c2", keep=False, rejected_by=["blur"], duration_s=3.0),
        clip(source_uri="a", clip_id="c3", keep=False, rejected_by=["too_short"], duration_s=1.0),
        SOURCE | clip(source_uri="b", clip_id=None, keep=False, rejected_by=["error"], error="empty", duration_s=None),
    ]
    second = [
        clip(source_uri="c", clip_id="c4"),
        clip(source_uri="c", clip_id="c5", keep=False, rejected_by=["mine:filter"]),
        clip(source_uri="d", clip_id=None, keep=False, rejected_by=["duplicate_source"], duplicate_of="00aa"),
    ]
    return [wide(tmp_path, first, "one"), wide(tmp_path, second, "two")]


def test_a_clip_with_two_reasons_is_lost_once_and_counted_under_both(tables):
    stages = funnel(tables, REASONS)
    assert (stage(stages, "text").lost, stage(stages, "text").rejected) == (1, 1)
    assert (stage(stages, "blur").lost, stage(stages, "blur").rejected) == (1, 2)


def test_the_funnel_ends_with_the_kept_clips(tables):
    last = funnel(tables, REASONS)[-1]
    assert (last.name, last.left, last.left_s) == ("kept", 2, 10.0)


def test_sources_are_counted_over_shards_and_lost_before_clips(tables):
    stages = funnel(tables, REASONS)
    left = [(s.name, s.left) for s in stages if s.unit == "sources"]
    assert left == [("sources found", 4), ("readable", 3), ("unique sources", 2)]
    assert stage(stages, "clips cut").left == 6


def test_every_stage_takes_over_what_the_one_before_left(tables):
    clips = [s for s in funnel(tables, REASONS) if s.unit == "clips"]
    for before, after in pairwise(clips):
        assert after.entered == before.left
        assert after.entered_s == pytest.approx(before.left_s)


def test_a_reason_that_nobody_announced_is_a_stage_too(tables):
    assert stage(funnel(tables, REASONS), "mine:filter").lost == 1


def test_the_worst_stage_is_the_one_that_lost_most_clips(tmp_path):
    rows = [clip(clip_id=f"c{i}", keep=False, rejected_by=["blur"]) for i in range(3)]
    rows.append(clip(clip_id="c9", keep=False, rejected_by=["text"]))
    assert worst(funnel([wide(tmp_path, rows)], REASONS)).name == "blur"


def test_without_any_clip_the_worst_stage_is_one_of_sources(tmp_path):
    row = clip(clip_id=None, keep=False, rejected_by=["error"], error="empty")
    assert worst(funnel([wide(tmp_path, [row])], REASONS)).name == "readable"


def test_the_text_has_a_line_for_every_stage_in_aligned_columns(tables):
    stages = funnel(tables, REASONS)
    lines = as_text(stages).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["stage", *(s.name for s in stages)]
    ends = {re.match(r"\S.*?  +(?:sources|clips) +[\d,]+", line).end() for line in lines[1:]}
    assert len(ends) == 1
