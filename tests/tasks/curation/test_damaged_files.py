"""Files of every container with bytes that are wrong: the run of a shard ends, and every file has its row."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.curation.cut import CutConfig, cut
from tasks.curation.dedup_sources import dedup_sources
from tasks.curation.embed import embed
from tasks.curation.scan import ScanConfig, scan
from tasks.tables import storage
from tests.media.made_video import encode, even

CONTAINERS = [
    *(("mp4", "libx264"), ("mov", "mpeg4"), ("mkv", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4")),
    *(("ts", "libx264"), ("mpg", "mpeg2video"), ("flv", "flv"), ("asf", "msmpeg4"), ("gif", "gif")),
]
CONFIG = ScanConfig(decode_max_s=20, decode_max_s_per_gb=0, memory_max_gib=1)


def damaged(data: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """A file's bytes with damage that is drawn: in its header, anywhere, cut, without or with twice a part, no head."""
    for reach in (200, len(data)):
        spoiled = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, reach, max(1, reach // 100))
        spoiled[places] = rng.integers(0, 256, len(places))
        yield spoiled.tobytes()
    first, second = sorted(rng.integers(1, len(data), 2).tolist())
    yield data[:second]
    yield data[:first] + data[second:]
    yield data[:second] + data[first:]
    yield data[first:]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_damaged_file_has_its_row_and_what_is_shown_of_it_lies_in_time(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    files = []
    for suffix, codec in CONTAINERS:
        whole = encode(tmp_path / f"whole.{suffix}", even(75, 25 if codec == "gif" else 30), codec)
        for number, data in enumerate(damaged(whole.read_bytes(), rng)):
            files.append(tmp_path / f"{number}.{suffix}")
            files[-1].write_bytes(data)
    listed = [{"source_uri": str(file), "bytes": file.stat().st_size, "version": "1"} for file in files]
    uri = str(tmp_path / "out" / "steps" / "sources" / "shard-0123.parquet")
    storage.write_table(pa.Table.from_pylist(listed), uri)

    scanned = scan.fn(uri, CONFIG)
    rows = storage.read_table(scanned).to_pylist()
    assert [row["source_uri"] for row in rows] == sorted(map(str, files))
    for row in rows:
        if row["error"]:
            assert row["error"].startswith(f"scan: {Path(row['source_uri']).name}: ")
            assert str(tmp_path) not in row["error"]
            continue
        assert np.isfinite([row["start_s"], row["end_s"], row["fps"]]).all() and row["start_s"] < row["end_s"]
        assert row["width"] > 0 and row["height"] > 0
        assert all(before["end_s"] <= after["start_s"] for before, after in pairwise(row["segments"]))
    assert {bool(row["error"]) for row in rows} == {False, True}

    (unique,) = dedup_sources.fn([scanned], [embed.fn(scanned)])
    clips = storage.read_table(cut.fn([scanned, unique], CutConfig(clip_min_s=0.5, clip_max_s=1))[-1]).to_pylist()
    assert {row["source_uri"] for row in clips} == set(map(str, files))
    assert any(row["clip_id"] for row in clips)
