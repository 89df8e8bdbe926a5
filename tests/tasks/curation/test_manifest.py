from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tasks.curation import manifest as module
from tasks.curation.manifest import manifest
from tests.tasks.rows import clip, wide

CAPTION = {"caption_short": "s", "caption_detailed": "d", "caption_model": "m"}


def final(number: int, keep: bool = True, aspect: str | None = "16x9", seconds: int | None = 5) -> dict:
    reasons = [] if keep else ["blur"]
    place = {"bucket_aspect": aspect, "bucket_duration_s": seconds} if keep else {}
    start = {"clip_id": f"c{number}", "start_s": float(number)}
    return clip(keep=keep, rejected_by=reasons, **start, **place, **CAPTION)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


def test_the_manifest_is_hive_partitioned_and_holds_kept_clips_only(tmp_path):
    table = wide(tmp_path, [final(0), final(1, keep=False), final(2, aspect="1x1", seconds=3)])
    folder = manifest.fn([table])
    assert sorted(files(Path(folder))) == [
        "aspect=16x9/duration=5/part-00000.parquet",
        "aspect=1x1/duration=3/part-00000.parquet",
    ]
    read = ds.dataset(folder, partitioning="hive").to_table().to_pylist()
    assert {(row["clip_id"], row["aspect"], row["duration"]) for row in read} == {("c0", "16x9", 5), ("c2", "1x1", 3)}


def test_all_clips_are_published_rejected_ones_too(tmp_path):
    table = wide(tmp_path, [final(0), final(1, keep=False)])
    manifest.fn([table])
    assert len(ds.dataset(tmp_path / "clips").to_table()) == 2


def test_the_same_tables_give_the_same_bytes(tmp_path):
    table = wide(tmp_path, [final(0), final(2)])
    first = files(Path(manifest.fn([table])))
    assert files(Path(manifest.fn([table]))) == first


def test_what_an_earlier_run_left_is_removed(tmp_path):
    manifest.fn([wide(tmp_path, [final(0, aspect="1x1")], shard="old")])
    manifest.fn([wide(tmp_path, [final(0)], shard="new")])
    assert list(files(tmp_path / "manifest")) == ["aspect=16x9/duration=5/part-00000.parquet"]
    assert list(files(tmp_path / "clips")) == ["new.parquet"]


def test_no_clip_is_lost_between_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_PART", 3)
    shards = [wide(tmp_path, [final(10 * s + i) for i in range(4)], shard=f"s{s}") for s in range(5)]
    folder = manifest.fn(shards)
    found = [row["clip_id"] for row in ds.dataset(folder, partitioning="hive").to_table().to_pylist()]
    assert sorted(found) == sorted(f"c{10 * s + i}" for s in range(5) for i in range(4))
    assert len(files(Path(folder))) > 1


def test_while_the_manifest_is_written_no_run_record_says_that_it_is_whole(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text("{}")
    table = wide(tmp_path, [final(0)])

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_manifest", full_disk)
    with pytest.raises(OSError, match="No space left"):
        manifest.fn([table])
    assert not (tmp_path / "run.json").exists()


def test_files_of_others_stay_and_are_named_in_a_warning(tmp_path, caplog):
    table = wide(tmp_path, [final(0)])
    theirs = [tmp_path / "clips" / "theirs.parquet", tmp_path / "manifest" / "aspect=1x1" / "theirs.parquet"]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"theirs")
    manifest.fn([table])
    assert [path.read_bytes() for path in theirs] == [b"theirs", b"theirs"]
    assert all(str(path) in caplog.text for path in theirs)


def test_what_a_run_that_died_while_it_wrote_left_is_removed_by_the_next(tmp_path, monkeypatch):
    real, calls = module.storage.write_table, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # two files in clips/, one in manifest/
            raise KeyboardInterrupt
        real(*arguments)

    old = [wide(tmp_path, [final(0, aspect=a)], shard=s) for s, a in (("a", "1x1"), ("b", "16x9"))]
    new = wide(tmp_path, [final(0, aspect="9x16")], shard="c")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.storage, "write_table", dies)
        manifest.fn(old)
    assert len(files(tmp_path / "clips")) == 2 and len(files(tmp_path / "manifest")) == 1
    manifest.fn([new])
    assert list(files(tmp_path / "clips")) == ["c.parquet"]
    assert list(files(tmp_path / "manifest")) == ["aspect=9x16/duration=5/part-00000.parquet"]
