"""The report shows why clips were rejected."""

import re
from pathlib import Path

import numpy as np
import pytest

from tasks.curation.verdict import VerdictConfig, judge, limits
from tasks.pages.report import render, report
from tasks.pages.report_examples import PER_SOURCE, choose
from tasks.pages.report_plots import Spread, number
from tasks.tables import storage
from tasks.tables.frame_store import FrameStoreWriter
from tasks.tables.limit import Limit
from tests.tasks.rows import clip, wide

ALLOWED = limits(VerdictConfig(blur_min=40.0, aesthetic_min=3.0), [])  # the numbers below are about these
BAD = {
    "text": {"text_area_kept": 0.0123, "text_boxes": [{"x": 10, "y": 300, "w": 200, "h": 40}]},
    "overlay": {"overlay_area_kept": 0.0456},
    "crop": {"crop_w": 320, "crop_h": 180},
    "blur": {"blur": 31.7},
    "motion_low": {"motion": 0.00112},
    "motion_high": {"motion": 2.34},
    "aesthetic": {"aesthetic": 1.87},
}
SHOWN = {"crop": "0.25"} | {
    r: str(next(v for v in c.values() if isinstance(v, float))) for r, c in BAD.items() if r != "crop"
}


def judged(**changes):
    row = clip(**changes)
    return row | judge(row, ALLOWED)


def make_rows():
    kept = [judged(clip_id=f"kept{i}", bucket_aspect="16x9", bucket_duration_s=5) for i in range(3)]
    rejected = [judged(clip_id=f"bad_{reason}", **changes) for reason, changes in BAD.items()]
    double = clip(clip_id="double", keep=False, rejected_by=["duplicate_clip"], duplicate_of="kept0", blur=None)
    broken = clip(
        clip_id=None, source_uri="/v/<b>broken</b>.mp4", keep=False, rejected_by=["error"], error="it is empty"
    )
    broken |= dict.fromkeys(["start_s", "end_s", "duration_s", "crop_w", "crop_h", "blur", "motion", "aesthetic"])
    return [*kept, *rejected, double, broken]


ROWS = make_rows()


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("out")
    with storage.writing(str(root / "frames" / "00aa" / "samples.parquet")) as file:
        store = FrameStoreWriter(file)
        for i in range(10):
            store.add(i / 2, np.full((90, 160, 3), 25 * i, np.uint8), None, None)
        store.close()
    return [wide(root, ROWS)]


@pytest.fixture(scope="module")
def page(tables) -> str:
    return render(tables, ALLOWED)


def section(page: str, name: str) -> str:
    return re.search(rf'<section id="{name}">.*?</section>', page, re.S)[0]


@pytest.mark.parametrize("reason", BAD)
def test_each_reason_has_a_section_with_the_number_and_its_threshold(page, reason):
    limit = next(limit for limit in ALLOWED if limit.reason == reason)
    bound = number(limit.low if limit.low is not None else limit.high)
    found = section(page, f"reason-{reason}")
    sign = "&lt;" if limit.low is not None else "&gt;"
    assert f"{SHOWN[reason]} {sign} {bound}" in " ".join(found.split())
    assert "bad_" in found
    assert "kept" in found


def test_a_reason_that_rejected_nothing_has_no_section(tmp_path):
    page = render([wide(tmp_path, ROWS[:3])], ALLOWED)
    assert 'id="reason-' not in page


def test_a_duplicate_stands_beside_the_copy_that_stays(page):
    found = section(page, "reason-duplicate_clip")
    assert found.index("double") < found.index("The copy that stays") < found.index("kept0")


def test_errors_are_listed_and_names_are_text_not_markup(page):
    assert "it is empty" in section(page, "errors")
    assert "<b>broken" not in page


def test_clips_have_animated_previews(page):
    assert section(page, "reason-blur").count('src="data:image/webp') == 4


def test_boxes_lie_over_the_previews_of_the_reason_they_explain(page):
    assert 'rect class="text"' in section(page, "reason-text")
    assert 'rect class="crop"' in section(page, "reason-crop")


def test_bytes_repeat(tables, page):
    assert render(tables, ALLOWED) == page


def test_the_report_opens_without_the_frame_store(tmp_path):
    found = section(render([wide(tmp_path, ROWS)], ALLOWED), "reason-blur")
    assert "31.7" in found
    assert "no frame stored" in found


@pytest.mark.parametrize(
    "part", [slice(0, 3), slice(3, 10), slice(11, 12)], ids=["all kept", "none kept", "only errors"]
)
def test_a_run_of_one_kind_of_row_has_a_report(tmp_path, part):
    assert "</html>" in render([wide(tmp_path, ROWS[part])], ALLOWED)


def test_the_page_loads_nothing_from_elsewhere(page):
    assert not re.findall(r'(?:src|href|srcset)="(?!data:|#)', page)


def test_the_page_stays_bounded_for_many_clips(tmp_path):
    many = [judged(clip_id=f"{i:016x}", source_uri=f"/v/{i}.mp4", blur=float(i % 90)) for i in range(2000)]
    page = render([wide(tmp_path, many)], ALLOWED)
    assert len(page) < 1_000_000
    assert "1,000 of 2,000 rows" in page


def test_the_examples_are_the_clips_nearest_to_the_threshold(tmp_path):
    many = [judged(clip_id=f"{i:016x}", source_uri=f"/v/{i}.mp4", blur=20.5 + i) for i in range(40)]
    found = section(render([wide(tmp_path, many)], ALLOWED), "reason-blur")
    assert "39.5 &lt; 40" in found
    assert "40.5 ≥ 40" in found


def test_the_report_is_written_beside_the_steps(tables, page):
    uri = report.fn(tables, ALLOWED)
    assert uri == tables[0].split("/steps/")[0] + "/report.html"
    assert Path(uri).read_text() == page


def test_a_strip_is_not_of_one_source_while_there_are_others():
    near = [(0.0, f"a{i}", "a", (0, i)) for i in range(9)] + [(1.0, f"b{i}", "b", (1, i)) for i in range(9)]
    chosen = choose(near, [], 4, 0)
    assert sum(table == 0 for table, _ in chosen) == PER_SOURCE


def test_a_number_is_told_from_its_threshold():
    assert number(0.0100004, [0.01]) == "0.0100004"
    assert number(0.01, [0.01]) == "0.01"
    assert number(None) == "-"


@pytest.mark.parametrize("column", ["blur", "aesthetic"])
def test_a_histogram_counts_every_clip_on_its_side_of_the_threshold(column):
    values = np.abs(np.random.default_rng(0).normal(5, 3, 1000))
    spread = Spread(column, [Limit("r", column, low=4.0)])
    spread.see(values)
    spread.lay_bins()
    spread.count(np.append(values, np.nan))
    assert spread.outside.sum() + spread.zeros_outside == (values < 4).sum() == spread.below[4.0]
    assert spread.inside.sum() + spread.outside.sum() + spread.zeros == 1000
    assert not spread.outside[spread.edges[:-1] >= 4].any()
