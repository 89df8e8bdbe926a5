from pathlib import Path

import pyarrow as pa

from tasks.curation.forget_errors import forget_errors
from tasks.tables import storage

KEY = "0123456789abcdef"


def result(root: Path, step: str, shard: str, *errors: str | None, name: str | None = None) -> str:
    uri = str(root / "steps" / step / (name or f"{shard}-{KEY}.parquet"))
    frames = [f"frames/{shard}{number}-ab" for number in range(len(errors))]
    storage.write_table(pa.table({"error": pa.array(errors, pa.string()), "frames_uri": frames}), uri)
    return uri


def steps_left(root: Path, shard: str) -> set[str]:
    return {path.parent.name for path in (root / "steps").rglob(f"{shard}-*.parquet")}


ALL = (
    "scan",
    "embed",
    "cut",
    "dedup-clips",
    "text",
    "overlays",
    "blur",
    "motion",
    "filter-of-mine",
    "verdict",
    "clips",
)


def library(root: Path, failed: str) -> None:
    """Two shards with a result of every step; that of step ``failed`` of shard ``bad`` has an error."""
    for step in ALL:
        result(root, step, "good", None)
        result(root, step, "bad", None, "it failed" if step == failed else None)
    result(root, "sources", "bad", None)
    storage.write_json([], str(root / "steps" / "duplicates" / f"{KEY}.json"))
    for store in ("bad0-ab", "bad1-ab", "good0-ab"):
        storage.write_json({}, str(root / "frames" / store / "source.json"))


def test_what_was_made_of_an_error_goes_with_it_and_other_shards_stay(tmp_path):
    library(tmp_path, "overlays")
    forget_errors(str(tmp_path))
    assert steps_left(tmp_path, "bad") == {"sources", "scan", "embed", "cut", "dedup-clips", "text"}
    assert steps_left(tmp_path, "good") == set(ALL)
    assert (tmp_path / "steps" / "duplicates" / f"{KEY}.json").exists()
    assert len(list(tmp_path.rglob("source.json"))) == 3


def test_only_a_source_that_could_not_be_decoded_is_decoded_again(tmp_path):
    library(tmp_path, "scan")
    forget_errors(str(tmp_path))
    assert steps_left(tmp_path, "bad") == {"sources"}
    assert steps_left(tmp_path, "good") == set(ALL)
    assert not (tmp_path / "frames" / "bad1-ab" / "source.json").exists()
    assert {path.parent.name for path in tmp_path.rglob("source.json")} == {"bad0-ab", "good0-ab"}
    assert not (tmp_path / "steps" / "duplicates" / f"{KEY}.json").exists(), "copies are decided over all sources"


def test_an_error_of_an_own_filter_leaves_the_scores(tmp_path):
    library(tmp_path, "filter-of-mine")
    forget_errors(str(tmp_path))
    assert steps_left(tmp_path, "bad") == {"sources"} | set(ALL) - {"filter-of-mine", "verdict", "clips"}


def test_where_nothing_failed_and_what_is_no_result_nothing_is_removed(tmp_path):
    library(tmp_path, "no step")
    other = result(tmp_path, "scan", "bad", "an error", name="notes.parquet")
    assert forget_errors(str(tmp_path)) == []
    assert storage.exists(other)
    assert forget_errors(str(tmp_path / "empty")) == []
