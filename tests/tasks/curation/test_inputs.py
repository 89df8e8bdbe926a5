import os
from pathlib import Path

import pytest

from tasks.curation.inputs import inputs_of
from tasks.curation.preflight import prepare
from tasks.curation.verdict import VerdictConfig
from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tasks.tables.owner import claim


def library(root: Path, count: int = 200) -> str:
    root.mkdir()
    for number in range(count):
        (root / f"{number:03d}.mp4").write_bytes(bytes(number))
    return str(root)


def uris(inputs) -> list[str]:
    return [uri for shard in inputs.shards for uri in storage.read_table(shard)["source_uri"].to_pylist()]


def test_a_run_starts_from_shards_of_all_sources(tmp_path):
    found = inputs_of(library(tmp_path / "in"), str(tmp_path / "out"), 16, 2.0)
    assert len(uris(found)) == 200 and len(found.shards) > 5 and found.passthrough == []
    assert found.taken == found.whole == (200, sum(range(200)))


def test_limit_and_sample_take_a_part_and_say_of_how_much(tmp_path):
    source = library(tmp_path / "in")
    few = inputs_of(source, str(tmp_path / "out"), 16, 2.0, limit=5)
    assert len(uris(few)) == few.taken[0] == 5 and few.whole == (200, sum(range(200)))
    assert "5 of them are taken" in few.notes
    tenth = inputs_of(source, str(tmp_path / "out"), 16, 2.0, sample="10%")
    assert 8 <= tenth.taken[0] <= 35 and len(uris(tenth)) == tenth.taken[0]


def test_what_is_passed_over_is_said(tmp_path):
    source = library(tmp_path / "in", 3)
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    assert any("1 pipes" in note for note in inputs_of(source, str(tmp_path / "out"), 16, 2.0).notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sources_per_shard": 0}, "sources per shard must be at least 1"),
        ({"limit": 0}, "at least 1"),
        ({"sample": "200%"}, "no part of the sources"),
        ({"output": "zip://out.zip"}, "output .*unpack it"),
        ({"source": "nonsense://bucket"}, "source .*no store is known"),
    ],
)
def test_a_run_that_cannot_succeed_is_refused_in_words(tmp_path, options, words):
    source = library(tmp_path / "in", 3)
    usual = {"source": source, "output": str(tmp_path / "out"), "sources_per_shard": 16, "samples_per_s": 2.0}
    with pytest.raises(PreflightError, match=words):
        inputs_of(**usual | options)


def test_an_output_of_another_kind_is_refused_before_anything_is_written(tmp_path):
    claim(str(tmp_path / "out"), "training")
    before = sorted((tmp_path / "out").iterdir())
    with pytest.raises(PreflightError, match="kind 'training'"):
        inputs_of(library(tmp_path / "in", 3), str(tmp_path / "out"), 16, 2.0)
    assert sorted((tmp_path / "out").iterdir()) == before


@pytest.mark.parametrize("column", ["blur", "keep", "clip_id", "aspect", "duration", "bucket_aspect"])
def test_a_list_may_bring_no_column_that_the_manifest_has(tmp_path, column):
    (tmp_path / "list.csv").write_text(f"path,{column}\na.mp4,1\n")
    with pytest.raises(PreflightError, match=f"'{column}'"):
        prepare(str(tmp_path / "list.csv"), str(tmp_path / "out"), "lite", 64, VerdictConfig(), 2.0)


def test_two_colons_in_the_names_of_source_and_output_are_letters(tmp_path):
    found = inputs_of(library(tmp_path / "in a::b", 3), str(tmp_path / "out a::b"), 16, 2.0)
    assert uris(found) == [f"{tmp_path}/in a::b/{number:03d}.mp4" for number in range(3)]
    assert {path.name for path in tmp_path.iterdir()} == {"in a::b", "out a::b"}
