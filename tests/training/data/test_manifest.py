"""The manifest as training reads it, and the ways in which it may be none."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.curation.scores import SCORES
from tasks.tables.schema import wide_schema
from tests.training.small_data import CLIPS, row, write_data, write_manifest
from training.data.buckets import Bucket
from training.data.manifest import SCHEMA, ManifestError, open_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


def test_what_curation_writes_is_what_training_reads() -> None:
    written = wide_schema(SCORES)
    for field in SCHEMA:
        assert written.field(field.name).type == field.type, field.name


def test_clips_are_found_by_bucket_with_their_own_captions(data: str, tmp_path: Path) -> None:
    manifest = open_manifest([data], tmp_path)
    counts = {Bucket(seconds, aspect): len(durations) for aspect, seconds, durations in CLIPS}
    assert {bucket: len(rows) for bucket, rows in manifest.rows.items()} == counts | {Bucket(0, "16x9"): 2}
    for bucket, rows in manifest.rows.items():
        for number in rows:
            clip = manifest.clip(int(number))
            assert clip.bucket == bucket
            assert clip.caption_short == f"square {clip.clip_id.removeprefix('clip-')}"


def test_the_fingerprint_is_of_the_rows_wherever_they_lie(data: str, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(data, copy)
    there = open_manifest([str(copy)], tmp_path / "cache")
    assert there.fingerprint == open_manifest([data], tmp_path / "cache").fingerprint
    part = next(copy.glob("**/*.parquet"))
    table = pq.read_table(part, partitioning=None)
    captions = pa.array(["another"] * len(table))
    pq.write_table(table.set_column(table.schema.get_field_index("caption_short"), "caption_short", captions), part)
    assert open_manifest([str(copy)], tmp_path / "cache").fingerprint != there.fingerprint


def test_two_manifests_are_one(data: str, tmp_path: Path) -> None:
    more = [row(100 + n, tmp_path / "none.mp4", (48, 80), "16x9", 1, 1.0) for n in range(3)]
    write_manifest(more, tmp_path / "more")
    both = open_manifest([data, str(tmp_path / "more")], tmp_path / "cache")
    assert len(both) == len(open_manifest([data], tmp_path / "cache")) + 3
    assert len(both.rows[Bucket(1, "16x9")]) == 6


def test_another_schema_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.mp4"], "text": ["a cat"]}), tmp_path / "a.parquet")
    with pytest.raises(ManifestError, match=r"is no manifest: it lacks the columns clip_id.*curate-videos"):
        open_manifest([str(tmp_path)], tmp_path / "cache")


def test_an_empty_bucket_is_refused(data: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    part = copy / "aspect=9x16" / "duration=1" / "part-00000.parquet"
    pq.write_table(SCHEMA.empty_table(), part)
    with pytest.raises(ManifestError, match=r"aspect=9x16/duration=1/part-00000.parquet is empty"):
        open_manifest([str(copy)], tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"caption_detailed": None}, "rows without caption_detailed"),
        ({"bucket_aspect": "5x4"}, "aspect ratio 5x4; known: 16x9"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(tmp_path: Path, change: dict[str, str], words: str) -> None:
    fields = [field.with_nullable(True) for field in SCHEMA]
    good = row(0, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0)
    pq.write_table(pa.Table.from_pylist([good, good | change], schema=pa.schema(fields)), tmp_path / "a.parquet")
    with pytest.raises(ManifestError, match=words):
        open_manifest([str(tmp_path)], tmp_path / "cache")


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not exist"):
        open_manifest([str(tmp_path / "none")])
    with pytest.raises(ManifestError, match="holds no Parquet file"):
        open_manifest([str(tmp_path)])
