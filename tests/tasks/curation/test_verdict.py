import pytest

from tasks.curation.buckets import buckets
from tasks.curation.caption import caption
from tasks.curation.clips import wide
from tasks.curation.verdict import VerdictConfig, judge, limits, verdict
from tasks.tables.rows import joined
from tests.tasks.rows import clip, read, tables

DEFAULTS = limits(VerdictConfig(), [])


def test_a_good_clip_is_kept():
    assert judge(clip(), DEFAULTS) == {"keep": True, "rejected_by": []}


def test_all_reasons_are_given_not_only_the_first():
    row = clip(text_area_kept=0.5, blur=0.0, motion=0.0, aesthetic=0.0)
    assert judge(row, DEFAULTS)["rejected_by"] == ["text", "blur", "motion_low", "aesthetic"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text_area_kept": 0.9}, "text"),
        ({"overlay_area_kept": 0.9}, "overlay"),
        ({"crop_w": 100}, "crop"),
        ({"blur": 0.0}, "blur"),
        ({"motion": 0.0}, "motion_low"),
        ({"motion": 9.0}, "motion_high"),
        ({"aesthetic": 0.0}, "aesthetic"),
    ],
)
def test_each_score_has_its_reason(changes, reason):
    assert judge(clip(**changes), DEFAULTS) == {"keep": False, "rejected_by": [reason]}


def test_what_an_earlier_step_ruled_out_is_not_judged_again(tmp_path):
    row = clip(rejected_by=["too_short"], blur=None, motion=None, aesthetic=None, text_area_kept=None)
    assert judge(row, DEFAULTS) == {"keep": False, "rejected_by": []}
    judged = joined(verdict.fn(tables(tmp_path, "aesthetics", [row]), VerdictConfig(), []))
    assert [(row["keep"], row["rejected_by"]) for row in judged] == [(False, ["too_short"])]


def test_an_image_is_not_rejected_for_having_no_motion():
    assert judge(clip(duration_s=0.0, motion=None), DEFAULTS)["keep"]


def test_a_video_that_could_not_be_measured_is_not_kept():
    assert judge(clip(motion=None), DEFAULTS)["rejected_by"] == ["motion_low", "motion_high"]


def test_an_empty_threshold_switches_its_test_off():
    off = limits(VerdictConfig(blur_min=None), [])
    assert judge(clip(blur=0.0), off)["keep"]


def test_a_source_without_clips_is_never_kept(tmp_path):
    broken = clip(source_uri="/videos/b.mp4", clip_id=None, rejected_by=["error"], error="broken")
    given = tables(tmp_path, "aesthetics", [clip(), broken])
    judged = buckets.fn(caption.fn(verdict.fn(given, VerdictConfig(), [])))
    rows = wide(judged, given[0], []).to_pylist()
    assert [row["keep"] for row in rows] == [True, False]


def test_another_threshold_is_another_file_and_the_same_one_is_found_again(tmp_path):
    given = tables(tmp_path, "aesthetics", [clip(blur=100.0)])
    loose, strict = (verdict.fn(given, VerdictConfig(blur_min=least), []) for least in (50.0, 150.0))
    assert [read(judged[-1])[0]["keep"] for judged in (loose, strict)] == [True, False]
    assert verdict.fn(given, VerdictConfig(blur_min=50.0), []) == loose
