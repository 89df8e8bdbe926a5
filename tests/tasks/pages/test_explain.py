import pyarrow as pa
import pytest

from tasks.pages.explain import explain, explained
from tasks.tables import storage
from tasks.tables.limit import Limit

ALLOWED = [
    Limit("blur", "blur", 60, None, "The picture is blurry."),
    Limit("motion_low", "motion", 0.002, None, "The picture stands still."),
    Limit("motion_high", "motion", None, 1.0, "Too fast."),
    Limit("aesthetic", "aesthetic", None, None, "Ugly."),
]


def row(**values):
    plain = {
        "clip_id": "ab12cd34ef56ab78",
        "source_id": "9988776655443322",
        "source_uri": "/films/holiday 1.mp4",
        "start_s": 62.5,
        "end_s": 67.0,
        "duration_s": 4.5,
        "fps": 25.0,
        "width": 640,
        "height": 360,
        "error": None,
        "rejected_by": [],
        "duplicate_of": None,
        "crop_x": 0,
        "crop_y": 0,
        "crop_w": 640,
        "crop_h": 360,
        "blur": 31.2,
        "motion": 0.0964,
        "aesthetic": 4.7,
        "keep": True,
    }
    return plain | values


def write(root, *rows) -> None:
    storage.write_table(pa.Table.from_pylist(list(rows)), str(root / "clips" / "a.parquet"))


def test_a_rejected_clip_has_each_score_beside_its_limit_and_the_reason_in_words():
    text = explained(row(keep=False, rejected_by=["blur"]), ALLOWED)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "span 1:02.5 to 1:07.0 (4.5 s), 640 x 360 pixels, 25 frames a second" in lines
    assert "verdict rejected by blur" in lines
    assert "blur: The picture is blurry." in lines
    assert "blur 31.2 at least 60 <- blur" in lines
    assert "motion 0.0964 at least 0.002 and at most 1" in lines
    assert "aesthetic 4.7 switched off" in lines


def test_an_error_has_its_words_and_no_scores():
    unmeasured = dict.fromkeys(("blur", "motion", "aesthetic", "start_s", "end_s", "duration_s", "crop_w", "clip_id"))
    text = explained(row(**unmeasured, keep=False, rejected_by=["error"], error="the file is empty"), ALLOWED)
    assert "error      the file is empty" in text
    assert "the source yields no clip" in text
    assert "at least" not in text


def test_a_crop_is_shown_where_there_is_one():
    assert "crop       600 x 300 pixels from (40, 30)" in explained(
        row(crop_x=40, crop_y=30, crop_w=600, crop_h=300), []
    )
    assert "crop " not in explained(row(), [])


def test_a_duplicate_names_the_copy_that_stays(tmp_path):
    copy = row(clip_id=None, source_uri="/films/copy.mp4", source_id="1111222233334444", keep=False)
    write(tmp_path, row(), copy | {"rejected_by": ["duplicate_source"], "duplicate_of": "9988776655443322"})
    text = explain(str(tmp_path), "copy.mp4", ALLOWED)
    assert "9988776655443322 stays (holiday 1.mp4, 1:02.5 to 1:07.0)" in text


@pytest.mark.parametrize("what", ["ab12", "ab12cd34ef56ab78", "99887766", "holiday 1", "/films/holiday"])
def test_a_clip_is_found_by_the_beginning_of_an_id_and_by_a_part_of_its_uri(tmp_path, what):
    write(tmp_path, row(), row(clip_id="ffff", source_id="eeee", source_uri="/films/other.mp4"))
    text = explain(str(tmp_path), what, ALLOWED)
    assert "holiday 1.mp4" in text
    assert "other.mp4" not in text


def test_what_fits_nothing_is_said(tmp_path):
    with pytest.raises(LookupError, match="no curation has ended"):
        explain(str(tmp_path), "ab12", ALLOWED)
    write(tmp_path, row())
    with pytest.raises(LookupError, match="fits 'zzz'"):
        explain(str(tmp_path), "zzz", ALLOWED)


def test_links_lead_to_the_sections_of_the_report_that_show_the_clip(tmp_path):
    write(tmp_path, row(keep=False, rejected_by=["blur"]))
    (tmp_path / "report.html").write_text(
        '<section id="funnel">none</section><section id="reason-blur">ab12cd34ef56ab78</section>'
        '<section id="reason-motion_low">another</section><script type="application/json" id="data">[]</script>'
    )
    text = explain(str(tmp_path), "ab12", ALLOWED)
    assert f"{tmp_path.as_uri()}/report.html#reason-blur" in text
    assert "#reason-motion_low" not in text
    assert "#clips" not in text
