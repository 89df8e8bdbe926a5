"""Facts about duplicate clips: what repeats itself goes; what goes on in the same place stays."""

import numpy as np
import pyarrow as pa
import pytest

from tasks.curation.dedup_clips import DedupClipsConfig, Track, dedup_clips, difference, find_duplicates
from tasks.tables import storage
from tasks.tables.rows import joined
from tests.tasks.rows import clip, tables

LIMIT = DedupClipsConfig().max_difference
SIDE = 12


def scene(seed: int = 0) -> Track:
    return np.random.default_rng(seed).uniform(40, 200, (1, 3, SIDE, SIDE)).astype(np.float32)


def walk(start: int, frames: int = 40) -> Track:
    """Somebody crosses a scene before a still camera, a column every four frames."""
    track = np.repeat(scene(), frames, axis=0)
    for i, frame in enumerate(track):
        frame[:, 4:10, (start + i // 4) % SIDE] = 230
    return track


def coded(track: Track, seed: int) -> Track:
    return track + np.random.default_rng(seed).normal(0, 1, track.shape).astype(np.float32)


def test_a_frozen_picture_repeats_itself():
    still = np.repeat(scene(), 40, axis=0)
    assert difference(coded(still, 1), coded(still, 2)) < LIMIT


def test_a_loop_repeats_itself_wherever_it_starts():
    loop = walk(0, frames=4 * SIDE)
    assert difference(coded(loop, 1), coded(np.roll(loop, 17, axis=0), 2)) < LIMIT


def test_who_has_walked_on_is_no_repeat():
    assert difference(walk(0, frames=20), walk(5, frames=20)) > 3 * LIMIT


def test_a_clip_that_shows_more_is_no_repeat_of_one_that_shows_less():
    part, whole = walk(0, frames=16), walk(0, frames=4 * SIDE)
    assert difference(whole, part) < LIMIT < difference(part, whole)


def test_the_longer_clip_stays_then_the_earlier():
    still = np.repeat(scene(), 30, axis=0)
    rows = [clip(clip_id=i, start_s=s, duration_s=d) for i, s, d in (("a", 0.0, 3.0), ("b", 3.0, 5.0), ("c", 8.0, 5.0))]
    assert find_duplicates(rows, [still, still, still], LIMIT) == {"a": "b", "c": "b"}


@pytest.fixture
def shard(tmp_path) -> list[str]:
    """A source of 12 s: a still picture for 6 s, then somebody who walks; one shot is too short."""
    still = np.repeat(scene(3), 60, axis=0)
    track = np.concatenate([still, walk(0, frames=60)]).astype(np.uint8)
    times = np.arange(120) / 10
    thumbnails = [frame.tobytes() for frame in track]
    storage.write_table(
        pa.table({"time_s": times, "thumbnail": thumbnails}), str(tmp_path / "frames" / "00aa" / "track.parquet")
    )
    spans = [("a", 0.0, 3.0), ("b", 3.0, 6.0), ("c", 6.0, 9.0), ("d", 0.0, 2.0)]
    rows = [clip(clip_id=i, start_s=a, end_s=b, duration_s=b - a) for i, a, b in spans]
    rows[3]["rejected_by"] = ["too_short"]
    return tables(tmp_path, "cut", rows)


def test_a_repeat_is_marked_and_the_rest_left_as_it_was(shard):
    rows = joined(dedup_clips.fn(shard))
    assert [row["duplicate_of"] for row in rows] == [None, "a", None, None]
    assert [row["rejected_by"] for row in rows] == [[], ["duplicate_clip"], [], ["too_short"]]
