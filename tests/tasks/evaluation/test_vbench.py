"""VBench's totals: the published numbers, the report's tables, and what has no totals."""

import json
from pathlib import Path

import pytest

from tasks.evaluation.vbench import (
    DIMENSIONS,
    QUALITY,
    SEMANTIC,
    RefusedSet,
    Score,
    read_results,
    total,
    totals,
    weighted_scores,
)

DATA = Path(__file__).parents[2] / "data"
GOLDEN = json.loads((DATA / "vbench_totals_public.json").read_text())
REPORT = json.loads((DATA / "report_tables.json").read_text())
SCORES: dict[str, float] = GOLDEN["sets"][0]["scores"]
ROUNDING = 0.0101  # of three numbers with two decimals


@pytest.mark.parametrize("golden", GOLDEN["sets"])
def test_totals_are_the_published_ones(golden) -> None:
    quality, semantic, overall = totals(golden["scores"])
    assert abs(quality - golden["quality"]) < 1e-9
    assert abs(semantic - golden["semantic"]) < 1e-9
    assert abs(overall - golden["total"]) < 1e-9
    weighted = weighted_scores(golden["scores"])
    assert max(abs(weighted[name] - value) for name, value in golden["normalised_weighted"].items()) < 1e-9


def test_dimensions_and_their_prompts_are_the_published_ones() -> None:
    assert set(DIMENSIONS) == set(GOLDEN["dimensions"])
    assert set(QUALITY) == set(GOLDEN["quality_dims"]) and set(SEMANTIC) == set(GOLDEN["semantic_dims"])
    assert {name: dimension.prompts for name, dimension in DIMENSIONS.items()} == GOLDEN["prompts_per_dimension"]


@pytest.mark.parametrize("model", REPORT["table_3"])
def test_every_row_of_the_reports_table_3_obeys_the_total(model: str) -> None:
    overall, quality, semantic = REPORT["table_3"][model]
    assert abs(total(quality, semantic) - overall) < ROUNDING


@pytest.mark.parametrize("stage", REPORT["table_4"])
def test_every_row_of_the_reports_table_4_obeys_both_totals(stage: str) -> None:
    overall, quality, semantic = REPORT["table_4"][stage]["vbench"]
    assert abs(total(quality, semantic) - overall) < ROUNDING
    vq, mq, ta, overall = REPORT["table_4"][stage]["videoalign"]
    assert abs(vq + mq + ta - overall) < 2.01e-4


def test_values_above_their_scale_are_not_clipped() -> None:
    weighted = weighted_scores({"motion_smoothness": 0.999, "scene": 0.9})
    assert abs(weighted["motion_smoothness"] - 1.0051457975986275) < 1e-12
    assert weighted["scene"] > 1.09


def test_an_incomplete_set_is_refused_and_names_what_is_missing() -> None:
    scores = {name: value for name, value in SCORES.items() if name not in ("color", "scene")}
    with pytest.raises(RefusedSet, match="missing color, scene"):
        totals(scores)
    with pytest.raises(RefusedSet, match="unknown colour"):
        totals(SCORES | {"colour": 0.5})


@pytest.mark.parametrize("value", [float("nan"), -0.01, 96.1])
def test_values_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(RefusedSet, match=r"color is .*, and scores lie in 0 to 1"):
        totals(SCORES | {"color": value})


def test_percent_is_named_and_all_faults_come_at_once() -> None:
    scores = {name: 100 * value for name, value in SCORES.items() if name != "scene"}
    with pytest.raises(RefusedSet, match=r"missing scene.*subject_consistency is 96.* is it in percent\?.*color is 73"):
        totals(scores)


def test_scores_of_different_environments_are_refused() -> None:
    scores = {name: Score(value, environment="a1") for name, value in SCORES.items()}
    assert totals(scores) == totals(SCORES)
    with pytest.raises(RefusedSet, match=r"2 environments: a1 \(.*\), b2 \(color\)"):
        totals(scores | {"color": Score(0.5, environment="b2")})
    with pytest.raises(RefusedSet, match=r"unknown \(color\)"):
        totals(scores | {"color": 0.5})


def results(names: list[str], **videos: int) -> dict:
    """What the package writes, with the number of videos that it finds for a complete set."""
    return {
        name: [
            SCORES[name],
            [{"video_path": f"{i}.mp4"} for i in range(videos.get(name, 5 * DIMENSIONS[name].prompts))],
        ]
        for name in names
    }


def test_result_files_of_the_package_are_read_and_joined(tmp_path) -> None:
    for number, names in enumerate((list(QUALITY), list(SEMANTIC))):
        (tmp_path / f"results_{number}_eval_results.json").write_text(json.dumps(results(names)))
    scores = read_results(sorted(tmp_path.glob("*_eval_results.json")), environment="a1")
    assert totals(scores) == totals(SCORES)
    assert scores["scene"] == Score(SCORES["scene"], 430, "a1")


def test_a_dimension_that_lacks_videos_is_refused(tmp_path) -> None:
    """The package only warns of a video that is not there, and averages over the others."""
    file = tmp_path / "results_eval_results.json"
    file.write_text(json.dumps(results(list(DIMENSIONS), scene=429)))
    with pytest.raises(RefusedSet, match="scene was measured on 429 videos, not 430"):
        totals(read_results([file]))


def test_prompts_that_occur_twice_and_objects_that_are_not_found_are_no_fault(tmp_path) -> None:
    file = tmp_path / "results_eval_results.json"
    file.write_text(json.dumps(results(list(DIMENSIONS), appearance_style=445, color=301)))
    assert totals(read_results([file])) == totals(SCORES)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "no dimensions"), ('{"color": 0.5}', "color is not"), ('{"color": [0.5', "cut off")],
)
def test_files_of_another_format_are_refused(tmp_path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(RefusedSet, match=message):
        read_results([tmp_path / "a.json"])


def test_a_dimension_in_two_files_is_refused(tmp_path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(json.dumps(results(["color"])))
    with pytest.raises(RefusedSet, match=r"b\.json has color, which another file has too"):
        read_results([tmp_path / "a.json", tmp_path / "b.json"])
