import io

import numpy as np
import pytest

from tasks.tables.frame_store import PAIR_SIDE, ROWS_PER_GROUP, SAMPLE_SIDE, FrameStore, FrameStoreWriter


def picture(level: int, width: int = 64, height: int = 36) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


@pytest.fixture
def store() -> FrameStore:
    """50 samples at 2 per second, brightness = 5 * index, partners 0.1 s later; the last sample has none."""
    file = io.BytesIO()
    writer = FrameStoreWriter(file)
    for i in range(50):
        last = i == 49
        writer.add(i / 2, picture(5 * i), None if last else i / 2 + 0.1, None if last else picture(5 * i + 2))
    writer.close()
    return FrameStore(file)


def test_frames_are_those_of_the_span_across_row_groups(store):
    frames = store.frames(3.0, 20.0)
    assert [frame.time_s for frame in frames] == [3.0 + i / 2 for i in range(34)]
    assert len(frames) > 2 * ROWS_PER_GROUP
    assert all(abs(int(frame.image[0, 0, 0]) - 10 * frame.time_s) < 3 for frame in frames)


def test_a_limit_spreads_the_frames_evenly(store):
    assert [frame.time_s for frame in store.frames(0.0, 8.0, limit=4)] == [1.0, 3.0, 5.0, 7.0]


def test_a_pair_that_reaches_over_the_end_of_a_clip_is_not_in_it(store):
    assert [pair.time_s for pair in store.pairs(0.0, 1.05)] == [0.0, 0.5]
    assert store.pairs(0.0, 0.5)[0].gap_s == pytest.approx(0.1)


def test_the_last_sample_has_no_partner(store):
    assert [frame.time_s for frame in store.frames(24.5, 30.0)] == [24.5]
    assert store.pairs(24.5, 30.0) == []


def test_both_pictures_of_a_pair_have_one_size_and_large_frames_are_scaled_down():
    file = io.BytesIO()
    writer = FrameStoreWriter(file)
    writer.add(0.0, picture(10, 1920, 1080), 0.1, picture(10, 1920, 1080))
    writer.close()
    store = FrameStore(file)
    assert max(store.frames(0, 1)[0].image.shape) == SAMPLE_SIDE
    pair = store.pairs(0, 1)[0]
    assert pair.first.shape == pair.second.shape
    assert max(pair.first.shape) == PAIR_SIDE


def test_a_small_frame_is_never_scaled_up(store):
    assert store.frames(0, 1)[0].image.shape == (36, 64, 3)
