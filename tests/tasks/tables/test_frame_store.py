"""What a frame store gives back, and what reading it costs."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec import filesystem

from tasks.tables import storage
from tasks.tables.frame_store import (
    PAIR_SIDE,
    ROWS_PER_GROUP,
    SAMPLE_SIDE,
    FrameStore,
    FrameStoreWriter,
    decode_jpeg,
    open_frames,
)
from tasks.tables.storage import OutputError, OutputMissing


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


def long_store(file: io.BytesIO | IO[bytes], samples: int) -> None:
    """A store of ``samples`` noisy frames at 2 per second, with partners; every one differs from the others."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    writer = FrameStoreWriter(file)
    for i in range(samples):
        writer.add(i / 2, np.roll(noise, i, axis=1), i / 2 + 0.1, np.roll(noise, i + 1, axis=1))
    writer.close()


@pytest.fixture
def counted(s3: str) -> Iterator[Callable[[int], tuple[str, list[int]]]]:
    """Makes stores on an S3 server, each with the list of the bytes that every further request for it brought."""
    store = filesystem("s3")
    cat_file, answers = store.cat_file, []

    def count(path: str, start: int | None = None, end: int | None = None) -> bytes:
        data = cat_file(path, start=start, end=end)
        answers.append(len(data))
        return data

    def make(samples: int) -> tuple[str, list[int]]:
        uri = f"{s3}/{samples}/samples.parquet"
        with storage.writing(uri) as file:
            long_store(file, samples)
        answers.clear()
        return uri, answers

    store.cat_file = count
    yield make
    store.cat_file = cat_file


def test_a_clip_costs_as_many_requests_in_a_long_source_as_in_a_short_one(counted):
    costs = {}
    for samples in (64, 2000):
        uri, answers = counted(samples)
        with open_frames(uri) as store:
            answers.clear()
            # Seconds 9 to 15: samples 18 to 29, in row group 1 alone.
            frames, pairs = store.frames(9.0, 15.0), store.pairs(9.0, 15.0)
            costs[samples] = list(answers)
        assert (len(frames), len(pairs)) == (12, 12)
    assert len(costs[64]) == 2  # one column chunk of samples, one of partners
    assert len(costs[2000]) == 2
    assert sum(costs[2000]) == pytest.approx(sum(costs[64]), rel=0.05)


def test_clips_one_after_the_other_read_no_byte_twice(counted):
    uri, answers = counted(320)
    with open_frames(uri) as store:
        opened = len(answers)
        answers.clear()
        for start_s in range(0, 160, 5):
            store.frames(start_s, start_s + 5)
            store.pairs(start_s, start_s + 5)
    assert opened <= 3
    assert len(answers) == 2 * 320 / ROWS_PER_GROUP
    assert sum(answers) < filesystem("s3").size(uri)


def test_opening_reads_the_footer_alone(counted):
    uri, answers = counted(2000)
    with open_frames(uri) as store:
        assert len(store.times_s) == 2000
    assert len(answers) <= 3
    # Parquet's reader asks for the last 64 KiB first; the times of an hour are 8 bytes each, in base64, twice.
    assert sum(answers) < 64 * 1024 + 2000 * 2 * 8 * 4 / 3 + 2000 / ROWS_PER_GROUP * 1000


def test_what_is_not_asked_for_is_not_read(counted):
    uri, answers = counted(320)
    with open_frames(uri) as store:
        answers.clear()
        assert store.frames(500.0, 600.0) == store.pairs(500.0, 600.0) == []
        assert answers == []
        store.jpegs(0.0, 160.0, limit=1)
        assert len(answers) == 1


def test_threads_that_share_a_store_see_what_one_alone_sees(counted):
    uri, _ = counted(320)
    spans = [(start_s, start_s + 6.0) for start_s in range(0, 150, 3)]
    with open_frames(uri) as store:
        alone = [[frame.image.tobytes() for frame in store.frames(*span)] for span in spans]
    with open_frames(uri) as store, ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda span: [frame.image.tobytes() for frame in store.frames(*span)], spans)
        assert list(together) == alone


def test_threads_that_want_one_row_group_read_it_once(counted):
    uri, answers = counted(64)
    with open_frames(uri) as store, ThreadPoolExecutor(8) as pool:
        answers.clear()
        list(pool.map(lambda _: store.jpegs(0.0, 8.0), range(32)))
    assert len(answers) == 1


def test_times_are_exact_and_a_missing_partner_is_no_time():
    times_s = [0.1 + 0.2, 1 / 3, 1e6 + 1e-9]
    file = io.BytesIO()
    writer = FrameStoreWriter(file)
    for time_s in times_s:
        writer.add(time_s, picture(9), None, None)
    writer.close()
    store = FrameStore(file)
    assert store.times_s.tolist() == times_s
    assert np.isnan(store.partner_times_s).all()
    assert pq.read_table(io.BytesIO(file.getvalue()))["time_s"].to_pylist() == times_s


def test_stored_pictures_come_as_they_were_stored(store):
    stored = store.jpegs(3.0, 6.0)
    assert [jpeg[:2] for jpeg in stored] == [b"\xff\xd8"] * 6
    assert all((decode_jpeg(jpeg) == f.image).all() for jpeg, f in zip(stored, store.frames(3.0, 6.0), strict=True))


def test_a_source_without_samples_has_a_store():
    file = io.BytesIO()
    FrameStoreWriter(file).close()
    store = FrameStore(file)
    assert store.frames(0.0, 10.0) == store.pairs(0.0, 10.0) == []


def test_a_store_that_is_gone_or_broken_is_an_error_of_the_output(tmp_path):
    uri = str(tmp_path / "samples.parquet")
    with pytest.raises(OutputMissing), open_frames(uri):
        pass
    with storage.writing(uri) as file:
        long_store(file, 64)
    with open(uri, "r+b") as file:
        file.seek(64)
        file.write(b"\0" * 50_000)  # over the first row groups; the footer is whole
    with open_frames(uri) as store:
        with pytest.raises(OutputError):
            store.frames(0.0, 5.0)
        with pytest.raises(OutputError):  # also for the next who asks
            store.frames(0.0, 5.0)
    with open(uri, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(OutputError), open_frames(uri):
        pass


def test_a_pair_of_held_footage_keeps_the_time_in_which_its_picture_changed(tmp_path):
    image = np.zeros((48, 64, 3), np.uint8)
    with open(tmp_path / "store.parquet", "wb") as file:
        writer = FrameStoreWriter(file)
        writer.add(0.5, image, 0.625, image, 0.25)
        writer.add(1.0, image, 1.1, image)
        writer.add(1.5, image, None, None)
        writer.close()
    with open_frames(str(tmp_path / "store.parquet")) as store:
        assert [pair.gap_s for pair in store.pairs(0, 9)] == pytest.approx([0.25, 0.1])
