from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_sample_image

from benchmarks.sample_library import encode, scenes
from tasks.curation import cut as module
from tasks.curation.cut import CutConfig, clip_row, clips_of, join_over, pans_among
from tasks.curation.dedup_sources import dedup_sources
from tasks.curation.embed import embed
from tasks.curation.scan import scan
from tasks.curation.shots import FrameTrack, Shot
from tasks.curation.transitions import Transition
from tasks.tables.frame_store import FrameStore, FrameStoreWriter
from tasks.tables.shards import write_shards
from tasks.tables.sources import find_sources
from tests.tasks.curation.test_shots import scene
from tests.tasks.rows import read

SOURCE = {"source_id": "00aa", "frames_uri": "f", "rejected_by": [], "width": 64, "height": 48, "fps": 24.0}


def recorded(root: Path, lengths: list[float], fps: float = 10.0, segments: list[int] | None = None) -> dict:
    """A source as the scan leaves it: takes of ``lengths`` seconds joined by cuts; a segment begins 30 s later."""
    folder = root / "f"
    folder.mkdir()
    segments = segments or [0] * len(lengths)
    starts = np.cumsum([0.0, *lengths]) + 30.0 * np.array([*segments, segments[-1]])
    track = FrameTrack()
    next_sample_s = 0.0
    with (folder / "samples.parquet").open("wb") as file, closing(FrameStoreWriter(file)) as store:
        for take, length in enumerate(lengths):
            images = scene(take, max(1, round(length * fps))).astype(np.uint8)
            for i, image in enumerate(images):
                time_s = float(starts[take]) + i / fps
                end_s = time_s + (length if len(images) == 1 else 1 / fps)
                track.add(time_s, end_s, segments[take], image)
                if time_s >= next_sample_s:
                    store.add(time_s, image, None, None)
                    next_sample_s = time_s + 0.5
    pa.parquet.write_table(track.flush(), folder / "track.parquet")
    pieces: list[dict] = []
    for take, length in enumerate(lengths):
        piece = {"start_s": float(starts[take]), "width": 64 + 16 * segments[take], "height": 48}
        if segments[take] == len(pieces):
            pieces.append(piece)
        pieces[-1]["end_s"] = piece["start_s"] + length
    end_s = pieces[-1]["end_s"]
    return SOURCE | {"start_s": 0.0, "end_s": end_s, "duration_s": end_s, "segments": pieces}


def test_every_shot_is_a_row_the_short_ones_with_their_reason(tmp_path):
    rows = clips_of(recorded(tmp_path, [5.0, 1.5, 12.5]), str(tmp_path), CutConfig())
    assert [row["rejected_by"] for row in rows] == [[], ["too_short"], [], [], []]
    assert all(3 <= row["duration_s"] <= 6 for row in rows if not row["rejected_by"])
    assert sum(row["duration_s"] for row in rows) == pytest.approx(5 + 1.5 + 12.5)


def test_other_clip_lengths_are_a_matter_of_config(tmp_path):
    rows = clips_of(recorded(tmp_path, [20.0]), str(tmp_path), CutConfig(clip_min_s=1, clip_max_s=2))
    assert len(rows) == 10


def test_clips_begin_at_the_times_of_frames(tmp_path):
    source = recorded(tmp_path, [13.0], fps=7.0)
    rows = clips_of(source, str(tmp_path), CutConfig())
    assert len(rows) == 3
    assert all(row["start_s"] * 7 == pytest.approx(round(row["start_s"] * 7)) for row in rows)


def test_no_clip_reaches_over_a_hole_and_each_has_the_size_of_its_part(tmp_path):
    rows = clips_of(recorded(tmp_path, [4.0, 5.0, 4.0], segments=[0, 1, 1]), str(tmp_path), CutConfig())
    spans = [(row["start_s"], row["end_s"], row["width"], row["crop_w"]) for row in rows]
    assert spans == [pytest.approx(s) for s in [(0, 4, 64, 64), (34, 39, 80, 80), (39, 43, 80, 80)]]
    assert not any("segments" in row for row in rows)


def test_a_slideshow_yields_no_clip_to_keep(tmp_path):
    rows = clips_of(recorded(tmp_path, [0.04, 0.04, 8.0], fps=0.1, segments=[0, 1, 2]), str(tmp_path), CutConfig())
    assert [row["rejected_by"] for row in rows] == [["too_short"], ["too_short"], ["error"]]
    assert "one picture that stands for 8.0 s" in rows[-1]["error"]


def test_a_video_of_one_picture_says_so(tmp_path):
    (row,) = clips_of(recorded(tmp_path, [0.04]), str(tmp_path), CutConfig())
    assert "a single picture" in row["error"]
    assert row["rejected_by"] == ["error"]
    assert row.get("clip_id") is None


def test_a_clip_without_a_sampled_frame_is_an_error(tmp_path):
    source = recorded(tmp_path, [8.0])
    with (tmp_path / "f" / "samples.parquet").open("wb") as file, closing(FrameStoreWriter(file)) as store:
        store.add(0.0, np.zeros((48, 64, 3), np.uint8), None, None)
    rows = clips_of(source, str(tmp_path), CutConfig())
    assert [row["rejected_by"] for row in rows] == [[], ["error"]]
    assert "no sampled frame" in rows[1]["error"]


def test_samples_of_two_segments_are_no_pan_of_one_camera(tmp_path):
    """The same view, moved a little, on either side of a change: a pan; not where a segment starts in between."""
    photograph = np.asarray(load_sample_image("china.jpg"), np.uint8)
    wide = photograph[60:360, :400], photograph[90:390, 120:520]
    with (tmp_path / "s.parquet").open("wb") as file, closing(FrameStoreWriter(file)) as writer:
        writer.add(0.0, wide[0], None, None)
        writer.add(2.0, wide[1], None, None)
    change = Transition("dissolve", 0.5, 1.5)
    with (tmp_path / "s.parquet").open("rb") as file:
        store = FrameStore(file)
        assert pans_among([change], store) == [change]
        assert pans_among([change], store, [0.0]) == [change]
        assert pans_among([change], store, [0.0, 1.5]) == []


def test_shots_of_two_segments_are_never_joined():
    pan = Transition("wipe", 4.0, 6.0)
    assert join_over([pan], [Shot(0.0, 4.0), Shot(6.0, 9.0)]) == [Shot(0.0, 9.0)]
    assert join_over([pan], [Shot(0.0, 4.0, 0), Shot(6.0, 9.0, 1)]) == [Shot(0.0, 4.0, 0), Shot(6.0, 9.0, 1)]


def test_a_source_that_is_ruled_out_is_not_cut(tmp_path):
    source = SOURCE | {"rejected_by": ["duplicate_source"], "clip_id": None}
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
