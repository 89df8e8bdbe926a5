"""The judge of odd files finds what is wrong with rows, and nothing where nothing is wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cases import Run, as_table, curate, judge, main, run_problems
from benchmarks.sample_scenes import encode
from tests.tasks.rows import clip

ERROR = clip(clip_id=None, error="cannot be decoded", rejected_by=["error"], keep=False)
REJECTED = clip(rejected_by=["motion_low"], keep=False)


def wrong(case: dict[str, Any], *rows: dict[str, Any], **others: list[dict[str, Any]]) -> list[str]:
    return judge(case, [{"error": None} | row for row in rows], others)


def test_every_file_has_a_row() -> None:
    assert wrong({}) == ["no row"]
    assert wrong({"error": "either"}) == ["no row"]
    assert wrong({}, clip()) == []


def test_a_file_that_must_be_an_error_has_one_on_every_row() -> None:
    assert wrong({"error": True}, ERROR, ERROR) == []
    assert wrong({"error": True}, REJECTED) == ["1 of 1 rows have no error"]
    assert wrong({"error": True}, ERROR, clip()) == ["1 of 2 rows have no error", "kept: 0.00 to 5.00 s"]


def test_a_file_that_must_be_no_error_has_none_on_any_row() -> None:
    assert wrong({"error": False}, clip(), REJECTED) == []
    assert wrong({"error": False}, clip(), ERROR) == ["error: cannot be decoded"]


@pytest.mark.parametrize("error", [{}, {"error": "either"}])
def test_where_an_error_is_right_too_the_other_fields_speak_of_rows_without(error: dict[str, Any]) -> None:
    case = error | {"width": 320, "duration_s": 5.0}
    assert wrong(case, ERROR) == []
    assert wrong(case, clip(width=320)) == []
    assert wrong(case, clip(width=640)) == ["width 640, not 320"]


def test_no_row_is_kept_with_an_error() -> None:
    kept = ERROR | {"keep": True}
    for case in ({}, {"error": "either"}, {"error": True}):
        assert "kept with its error: cannot be decoded" in wrong(case, kept)


def test_what_must_not_be_kept_is_not() -> None:
    assert wrong({"keep": False}, REJECTED) == []
    assert wrong({"keep": False}, ERROR) == []
    assert wrong({"keep": False}, REJECTED, clip(start_s=5.0, end_s=10.0)) == ["kept: 5.00 to 10.00 s"]


def test_the_length_is_from_the_first_start_to_the_last_end() -> None:
    rows = [clip(start_s=7.0, end_s=11.9), clip(start_s=2.0, end_s=7.0)]
    assert wrong({"duration_s": 10.0}, *rows) == []
    assert wrong({"duration_s": 10.2}, *rows) == ["lasts 9.90 s, not 10.20 s"]
    assert wrong({"duration_s": 10.2, "tolerance_s": 0.4}, *rows) == []
    assert wrong({"duration_s": 5.0}, clip(start_s=None, end_s=None)) == ["lasts no time, not 5.00 s"]
    assert wrong({"duration_s": 5.0}, clip(end_s=float("nan")))


def test_sizes_are_those_of_the_first_rows_and_of_the_last() -> None:
    wide, tall = clip(width=320, height=180), clip(width=320, height=240, start_s=5.0)
    case = {"sizes": [[320, 180], [320, 240]]}
    assert wrong(case, wide, wide, tall) == []
    assert wrong(case, tall, wide) == []  # in the order of time, whatever that of rows
    assert wrong(case, wide) == ["sizes [[320, 180]], not [[320, 180], [320, 240]]"]
    assert wrong(case, wide, tall, clip(width=640, height=240, start_s=6.0))
    assert wrong(case, wide, tall, wide | {"start_s": 9.0})
    assert wrong({"width": 320, "height": 180}, wide, tall) == ["height 240, not 180"]


def test_columns_are_equal_within_their_tolerance_on_every_row() -> None:
    case = {"must_equal": [{"column": "crop_x", "value": 90, "tolerance": 6}]}
    assert wrong(case, clip(crop_x=84), clip(crop_x=96)) == []
    assert wrong(case, clip(crop_x=90), clip(crop_x=97)) == ["crop_x 97, not 90"]
    assert wrong(case, clip(crop_x=None)) == ["crop_x None, not 90"]
    assert wrong({"must_equal": [{"column": "source_id", "value": "00aa"}]}, clip()) == []
    assert wrong({"must_equal": [{"column": "source_id", "value": "00ab"}]}, clip())


def test_two_files_that_are_alike_have_scores_alike() -> None:
    case = {"same_as": {"file": "sdr.mp4", "columns": ["blur"], "within": 0.25}}
    other = {"sdr.mp4": [clip(blur=80.0), clip(blur=100.0), clip(blur=500.0), clip(blur=None)]}
    assert wrong(case, clip(blur=76.0), **other) == []
    assert wrong(case, clip(blur=124.0), clip(blur=None), **other) == []
    assert wrong(case, clip(blur=74.0), **other) == ["blur 74.0, not within 25% of 100.0 of sdr.mp4"]
    assert wrong(case, clip(blur=None), **other)
    assert wrong(case, clip(blur=float("nan")), **other)
    assert wrong(case, clip(blur=100.0)) == ["blur 100.0, not within 25% of None of sdr.mp4"]


def test_no_kept_clip_reaches_far_into_seconds_that_none_should_show() -> None:
    case = {"not_kept_inside": [4.0, 24.0]}
    inside = clip(start_s=3.0, end_s=6.0)
    assert wrong(case, clip(start_s=0.0, end_s=4.5), clip(start_s=23.5, end_s=28.0)) == []
    assert wrong(case, inside | {"keep": False, "rejected_by": ["motion_low"]}) == []
    assert wrong(case, inside) == ["kept: 3.00 to 6.00 s, inside 4.0 to 24.0 s"]
    assert wrong(case, clip(start_s=0.0, end_s=28.0))


def test_a_file_that_moves_is_measured_to_move() -> None:
    case = {"motion_min": 0.02, "not_rejected_by": ["motion_low"]}
    assert wrong(case, clip(motion=0.03)) == []
    assert wrong(case, clip(motion=0.01)) == ["motion 0.01, below 0.02"]
    assert wrong(case, clip(motion=None)) == ["motion None, below 0.02"]
    assert wrong(case, REJECTED) == ["rejected by motion_low"]


def test_a_text_is_found_and_no_kept_crop_holds_it() -> None:
    case = {"text_found": True, "text_rows": [316, 360]}
    assert wrong(case, clip(text_area=0.03, crop_h=324)) == []
    assert wrong(case, clip(text_area=0.03, crop_h=360, keep=False)) == []
    assert wrong(case, clip(text_area=0.03, crop_y=352, crop_h=8)) == []
    assert wrong(case, clip(text_area=0.03, crop_h=325)) == ["kept with 9 rows of the text: 0.00 to 5.00 s"]
    assert wrong(case, clip(text_area=0.01, crop_h=316)) == ["text_area 0.01, below 0.02"]
    assert wrong(case, clip(text_area=None, crop_h=316)) == ["text_area None, below 0.02"]


def test_a_rule_that_is_not_known_is_said_and_not_passed_over() -> None:
    with pytest.raises(ValueError, match="sharpness_min"):
        wrong({"sharpness_min": 3}, clip())


def test_the_table_shows_names_of_any_bytes_and_counts() -> None:
    table = as_table({"caf\udce9.mp4": {"why": "no UTF-8"}, "a": {"why": "b"}}, {"caf\udce9.mp4": ["no row"], "a": []})
    assert table.encode()  # a terminal can print it
    assert "- no row" in table and "1 of 2 files hold" in table


def test_a_run_that_does_not_end_is_ended(tmp_path: Path) -> None:
    run = curate(tmp_path, tmp_path / "out", 0.1, tmp_path)
    assert run_problems(run, 0.1, []) == ["the run had not ended after 0 s"]


def test_a_run_that_stops_before_its_end_is_wrong_for_every_file(tmp_path: Path) -> None:
    assert run_problems(Run(1, "Traceback\nKeyError: 'fps'\n"), 60, []) == [
        "the run ended with status 1: KeyError: 'fps'"
    ]
    assert run_problems(Run(-11, ""), 60, [clip()]) == ["the run ended with status -11: without a word"]
    assert run_problems(Run(1, "no clip is kept"), 60, [clip(keep=False)]) == []


def test_a_folder_is_curated_and_judged(tmp_path: Path, prefect_api: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    folder = tmp_path / "cases"
    folder.mkdir()
    texture = np.random.default_rng(1).integers(0, 256, (20, 60, 3), np.uint8).repeat(6, 0).repeat(6, 1)
    encode(folder / "pan.mp4", (texture[:, 2 * i : 2 * i + 160] for i in range(96)), fps=24)
    (folder / "text.mp4").write_text("no video")
    shutil.copyfile(folder / "text.mp4", folder / "other.mp4")
    cases = {
        "pan.mp4": {"why": "", "error": False, "duration_s": 4.0, "width": 160, "height": 120},
        "text.mp4": {"why": "", "error": True},
        "other.mp4": {"why": "", "error": False},
        "none.mp4": {"why": ""},
    }
    (folder / "truth.json").write_text(json.dumps({"cases": cases}))
    assert main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "- error: " in out and "- no row" in out and "2 of 4 files hold" in out
