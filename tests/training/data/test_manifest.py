"""The manifest as training reads it, and the ways in which it may be none."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.curation.scores import SCORES
from tasks.tables.schema import wide_schema
from tests.training.small_data import CLIPS, row, write_data, write_manifest
from training.data.buckets import Bucket
from training.data.local_copy import once
from training.data.manifest import SCHEMA, Clip, Manifest, ManifestError, open_manifest


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


def test_the_fingerprint_does_not_depend_on_how_rows_are_cut_into_files(tmp_path: Path) -> None:
    rows = [row(n, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0) for n in range(50)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    fingerprints = set()
    for name, parts, group in (("one", [50], 50), ("small groups", [50], 3), ("parts", [1, 30, 19], 7)):
        (tmp_path / name).mkdir()
        first = 0
        for number, count in enumerate(parts):
            pq.write_table(table.slice(first, count), tmp_path / name / f"{number}.parquet", row_group_size=group)
            first += count
        fingerprints.add(open_manifest([str(tmp_path / name)], tmp_path / "cache").fingerprint)
    assert len(fingerprints) == 1


@pytest.mark.parametrize("name", SCHEMA.names)
def test_the_fingerprint_is_of_every_column(tmp_path: Path, name: str) -> None:
    rows = [row(n, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0) | {"crop_w": 40, "crop_h": 40} for n in range(2)]
    other = {"clip_id": "clip-9", "bucket_aspect": "1x1", "start_s": 0.25}.get(name, rows[0][name])
    changed = other + "x" if other == rows[0][name] and isinstance(other, str) else other
    changed = changed + 1 if changed == rows[0][name] else changed
    fingerprints = []
    for number, first in enumerate((rows[0], rows[0] | {name: changed})):
        folder = tmp_path / str(number)
        folder.mkdir()
        pq.write_table(pa.Table.from_pylist([first, rows[1]], schema=SCHEMA), folder / "a.parquet")
        fingerprints.append(open_manifest([str(folder)], tmp_path / "cache").fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_text_that_moves_from_a_row_to_the_next_is_other_text(tmp_path: Path) -> None:
    fingerprints = set()
    for name, captions in (("a", ["one two", " three"]), ("b", ["one", " two three"])):
        rows = [row(n, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0) | {"caption_short": captions[n]} for n in range(2)]
        write_manifest(rows, tmp_path / name)
        fingerprints.add(open_manifest([str(tmp_path / name)], tmp_path / "cache").fingerprint)
    assert len(fingerprints) == 2


def test_no_row_becomes_an_object_of_python(tmp_path: Path) -> None:
    """Opening makes as many calls for twenty thousand rows as for a thousand; each row cost eleven microseconds."""
    calls = []
    for size in (1_000, 20_000):
        one = pa.Table.from_pylist([row(0, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0)], schema=SCHEMA)
        table = one.take(pa.array(np.zeros(size, np.int64)))
        ids = pa.array([f"clip-{n:06d}" for n in range(size)])
        folder = tmp_path / str(size)
        folder.mkdir()
        pq.write_table(table.set_column(0, SCHEMA.field("clip_id"), ids), folder / "a.parquet")
        found = counted(lambda folder=folder: open_manifest([str(folder)], tmp_path / "cache"))  # type: ignore[misc]
        calls.append(found)
    assert calls[1] < 1.2 * calls[0]


def counted(do: Callable[[], object]) -> int:
    """How many functions are called, in all threads that are started meanwhile."""
    calls: Counter[str] = Counter()
    threading.setprofile(lambda frame, event, argument: calls.update([event]))
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        do()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return calls["call"] + calls["c_call"]


def test_one_process_of_a_machine_makes_the_copy_and_the_others_wait(tmp_path: Path) -> None:
    spawned = multiprocessing.get_context("fork")
    ranks = [spawned.Process(target=once, args=(tmp_path / "copy", slow_copy)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert len((tmp_path / "made").read_text().split()) == 1


def test_a_process_that_dies_while_it_copies_leaves_the_copy_to_the_next(tmp_path: Path) -> None:
    spawned = multiprocessing.get_context("fork")
    dying = spawned.Process(target=once, args=(tmp_path / "copy", endless_copy))
    dying.start()
    while not (tmp_path / "made").is_file():
        time.sleep(0.01)
    waiting = spawned.Process(target=once, args=(tmp_path / "copy", slow_copy))
    waiting.start()
    os.kill(dying.pid, signal.SIGKILL)  # type: ignore[arg-type]
    waiting.join()
    assert waiting.exitcode == 0 and (tmp_path / "copy").read_text() == str(waiting.pid)


def slow_copy(path: Path) -> None:
    with path.with_name("made").open("a") as file:
        file.write(f"{os.getpid()} ")
    time.sleep(0.2)
    path.write_text(str(os.getpid()))


def endless_copy(path: Path) -> None:
    path.with_name("made").touch()
    time.sleep(600)


def test_a_second_opening_reads_no_file_of_the_manifest(data: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    first = open_manifest([str(copy)], tmp_path / "cache")
    for part in copy.glob("**/*.parquet"):  # as long, as old, and unreadable
        stat = part.stat()
        part.write_bytes(bytes(stat.st_size))
        os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = open_manifest([str(copy)], tmp_path / "cache")
    assert again.fingerprint == first.fingerprint
    assert [again.clip(int(n)) for own in again.rows.values() for n in own] == [
        first.clip(int(n)) for own in first.rows.values() for n in own
    ]


class Counting(Manifest):
    """A manifest that counts the rows that are read of it."""

    read = 0

    def clip(self, row: int) -> Clip:
        self.read += 1
        return super().clip(row)


def test_captions_of_samples_are_read_from_as_many_rows_as_they_need(tmp_path: Path) -> None:
    """All rows of a bucket were read for four of them: 59,927 of 300,000 clips."""
    rows = [row(n, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0) for n in range(5000)]
    for n, caption in ((0, ""), (1, "same"), (2, "same"), (3, "  ")):
        rows[n] |= {"caption_short": caption}
    write_manifest(rows, tmp_path / "manifest")
    manifest = Counting(open_manifest([str(tmp_path / "manifest")], tmp_path / "cache").folder)
    wide = manifest.rows[Bucket(1, "16x9")]
    assert manifest.captions(wide, "caption_short", 4) == ["same", "square 4", "square 5", "square 6"]
    assert manifest.read == 7


def test_a_bucket_of_one_caption_is_not_read_to_its_end_for_another(tmp_path: Path) -> None:
    rows = [row(n, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0) | {"caption_short": "same"} for n in range(5000)]
    write_manifest(rows, tmp_path / "manifest")
    manifest = Counting(open_manifest([str(tmp_path / "manifest")], tmp_path / "cache").folder)
    assert manifest.captions(manifest.rows[Bucket(1, "16x9")], "caption_short", 4) == ["same"]
    assert manifest.read < 2000


def test_a_clip_of_two_manifests_is_counted_once(data: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    alone = open_manifest([data], tmp_path / "cache")
    for uris in ([data, str(copy)], [data, data], [data, f"{data}/aspect=16x9"]):
        both = open_manifest(uris, tmp_path / "cache")
        assert len(both) == len(alone)
        assert both.repeated == (len(alone) if str(copy) in uris else 0)  # a file that is named twice is read once
        assert {b: [both.clip(int(n)) for n in own] for b, own in both.rows.items()} == {
            b: [alone.clip(int(n)) for n in own] for b, own in alone.rows.items()
        }


def test_a_clip_whose_source_lies_in_two_places_is_counted_once(tmp_path: Path) -> None:
    for name in ("here", "there"):
        write_manifest([row(n, tmp_path / name, (48, 80), "16x9", 1, 1.0) for n in range(3)], tmp_path / name)
    both = open_manifest([str(tmp_path / name) for name in ("here", "there")], tmp_path / "cache")
    assert (len(both), both.repeated) == (3, 3)
    assert {both.clip(int(n)).source_uri for n in both.rows[Bucket(1, "16x9")]} == {str(tmp_path / "here")}


@pytest.mark.parametrize(
    "change", [{"crop_x": 8, "crop_w": 40}, {"caption_detailed": "other words"}, {"bucket_aspect": "3x2"}]
)
def test_manifests_that_disagree_about_a_clip_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Two crops of one clip would share remembered latents, and who asked first would decide."""
    rows = [row(n, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0) for n in range(9)]
    write_manifest(rows, tmp_path / "one")
    write_manifest([row(20, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0), rows[4] | change], tmp_path / "other")
    name = next(iter(change))
    said = rf"'?{change[name]}'? in .*other/.*\(row \d\)"
    words = rf"clip clip-4 is twice.*, and {name} is .* in .*one/.* \(row 4\) and {said}"
    with pytest.raises(ManifestError, match=words):
        open_manifest([str(tmp_path / "one"), str(tmp_path / "other")], tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("**/*.arrow"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop_x": 8}, r"its crop of 80 x 48 pixels at 8, 0 is not inside its picture of 80 x 48"),
        ({"crop_y": -2, "crop_h": 20}, r"its crop of 80 x 20 pixels at 0, -2 is not inside"),
        ({"crop_x": 2**31 - 1}, r"is not inside its picture"),
        ({"crop_h": 0}, r"its crop of 80 x 0 pixels has no size"),
        ({"width": 0}, r"its picture of 0 x 48 pixels has no size"),
        ({"end_s": 0.0}, r"it ends at 0.0 s, and starts at 0.0 s"),
        ({"start_s": 2.0}, r"it ends at 1.0 s, and starts at 2.0 s"),
        ({"end_s": float("nan")}, r"from 0.0 to nan s, which are no times"),
        ({"end_s": float("inf")}, r"from 0.0 to inf s, which are no times"),
        ({"bucket_duration_s": -1}, r"its bucket of -1 s is none"),
        ({"clip_id": ""}, r"its clip_id is empty"),
        ({"source_uri": ""}, r"its source_uri is empty"),
    ],
)
def test_a_row_that_would_fail_later_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    rows = [row(n, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0) for n in range(7)]
    rows[5] |= change
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "a.parquet", row_group_size=2)
    named = change.get("clip_id", "clip-5")
    with pytest.raises(ManifestError, match=rf"a.parquet, row 5, clip '{named}': .*{words}"):
        open_manifest([str(tmp_path)], tmp_path / "cache")


def test_how_many_rows_are_wrong_is_said(tmp_path: Path) -> None:
    rows = [row(n, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0) | {"crop_x": n % 2} for n in range(7)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "a.parquet")
    with pytest.raises(ManifestError, match=r"row 1, clip 'clip-1'.*; so are 2 rows after it"):
        open_manifest([str(tmp_path)], tmp_path / "cache")


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


def test_a_manifest_need_not_say_which_file_was_curated(tmp_path: Path) -> None:
    """An older one does not, and one of several inputs may have rows that do not."""
    rows = [row(n, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0) for n in range(2)]
    told = rows[0] | {"source_id": "00aa", "source_bytes": 5 * 10**9}
    untold = {name: value for name, value in rows[1].items() if name not in ("source_id", "source_bytes")}
    table = pa.Table.from_pylist([told, untold], schema=SCHEMA)
    for name, written in (("both", table), ("older", table.drop_columns(["source_id", "source_bytes"]))):
        (tmp_path / name).mkdir()
        pq.write_table(written, tmp_path / name / "a.parquet")
    both, older = (open_manifest([str(tmp_path / name)], tmp_path / "cache") for name in ("both", "older"))
    assert (both.clip(0).source_id, both.clip(0).source_bytes) == ("00aa", 5 * 10**9)
    assert (both.clip(1).source_id, both.clip(1).source_bytes) == ("", 0)
    assert older.clip(0) == Clip(**{**told, "source_id": "", "source_bytes": 0})
