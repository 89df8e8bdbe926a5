import pyarrow as pa
import pytest

from benchmarks.sample_library import encode, scenes
from tasks.curation import cut as module
from tasks.curation.cut import CutConfig, clip_row, clips_of
from tasks.curation.dedup_sources import dedup_sources
from tasks.curation.embed import embed
from tasks.curation.scan import scan
from tasks.curation.shots import Shot
from tasks.tables.frame_store import FrameStoreWriter
from tasks.tables.sources import find_sources, write_shards
from tests.tasks.rows import read

SOURCE = {"source_id": "00aa", "frames_uri": "f", "rejected_by": [], "width": 64, "height": 48, "fps": 24.0}
WHOLE = {"start_s": 0.0, "end_s": 20.0, "duration_s": 20.0}


@pytest.fixture
def shots(tmp_path, monkeypatch):
    """Lets a test say which shots a source has, in place of what is found in its track."""
    folder = tmp_path / "f"
    folder.mkdir()
    pa.parquet.write_table(pa.table({"time_s": pa.array([], pa.float64())}), folder / "track.parquet")
    with (folder / "samples.parquet").open("wb") as file:
        FrameStoreWriter(file).close()
    found: list[Shot] = []
    monkeypatch.setattr(module, "detect_transitions", lambda track, config: (found, []))
    return found


def test_every_shot_is_a_row_the_short_ones_with_their_reason(tmp_path, shots):
    shots += [Shot(0.0, 5.0), Shot(5.0, 6.5), Shot(7.5, 20.0)]
    rows = clips_of(SOURCE | WHOLE, str(tmp_path), CutConfig())
    assert [row["rejected_by"] for row in rows] == [[], ["too_short"], [], [], []]
    assert all(3 <= row["duration_s"] <= 6 for row in rows if not row["rejected_by"])
    assert sum(row["duration_s"] for row in rows) == pytest.approx(5 + 1.5 + 12.5)


def test_other_clip_lengths_are_a_matter_of_config(tmp_path, shots):
    shots.append(Shot(0.0, 20.0))
    rows = clips_of(SOURCE | WHOLE, str(tmp_path), CutConfig(clip_min_s=1, clip_max_s=2))
    assert len(rows) == 10


def test_a_source_that_is_ruled_out_is_not_cut(tmp_path):
    source = SOURCE | WHOLE | {"rejected_by": ["duplicate_source"], "clip_id": None}
    assert clips_of(source, str(tmp_path), CutConfig()) == [source]


def test_an_image_is_one_clip(tmp_path):
    image = SOURCE | {"start_s": 0.0, "end_s": 0.0, "duration_s": 0.0, "fps": 0.0}
    (row,) = clips_of(image, str(tmp_path), CutConfig())
    assert row["clip_id"]
    assert not row["rejected_by"]


def test_clip_ids_are_of_content_start_and_end_not_of_names():
    first = clip_row(SOURCE | {"source_uri": "a"}, 0.0, 5.0)["clip_id"]
    assert clip_row(SOURCE | {"source_uri": "b"}, 0.0, 5.0)["clip_id"] == first
    others = [clip_row(SOURCE, 0.0, 4.0), clip_row(SOURCE, 1.0, 5.0), clip_row(SOURCE | {"source_id": "1"}, 0.0, 5.0)]
    assert len({first, *(row["clip_id"] for row in others)}) == 4


def test_a_cut_in_a_real_file_is_found_and_no_clip_reaches_over_it(tmp_path):
    one, other = scenes(0)[:2]
    frames = [*one.frames(4.0, 24), *other.frames(4.0, 24)]
    height = min(frame.shape[0] for frame in frames)
    width = min(frame.shape[1] for frame in frames)
    (tmp_path / "videos").mkdir()
    encode(tmp_path / "videos" / "a.mp4", [frame[:height, :width] for frame in frames])
    (shard,) = write_shards(find_sources(str(tmp_path / "videos")), str(tmp_path / "out"), 64)
    scanned = scan.fn(shard)
    unique = dedup_sources.fn([scanned], [embed.fn(scanned)])
    rows = read(module.cut.fn([scanned, *unique])[-1])
    assert [(row["start_s"], row["end_s"]) for row in rows] == [
        (pytest.approx(0), pytest.approx(4, abs=0.09)),
        (pytest.approx(4, abs=0.09), pytest.approx(8, abs=0.05)),
    ]
