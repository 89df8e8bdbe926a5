"""Storage that fails is asked again, and what it failed of is never taken for a fault of the clip."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import av
import fsspec
import numpy as np
import pytest
import torch
from fsspec.spec import AbstractFileSystem
from PIL import Image

from tasks.curation.fetch import fetched
from tests.training.data.test_clips import clip, counting
from training.data import sources
from training.data.buckets import Shape
from training.data.clips import ClipError, read_clip
from training.data.manifest import Clip
from training.data.sources import SourceUnavailable

SHAPE = Shape(9, 48, 80)
AWAY: list[Exception] = [
    OSError(5, "Input/output error"),
    TimeoutError("no answer"),
    PermissionError("the token expired"),
    RuntimeError("503 Service Unavailable"),  # as stores raise whose errors are no OSErrors
]


class Shelf(AbstractFileSystem):
    """A store of one's own, whose reads of a number in ``failing`` raise, or end where ``cut`` says."""

    protocol = "shelf"
    cachable = False
    failing: ClassVar[dict[int, Exception]] = {}
    opening: ClassVar[list[Exception]] = []
    cut: int | None = None
    reads = opened = largest = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        type(self).opened += 1
        if self.opening:
            raise self.opening.pop(0)
        return _File(path)


class _File(io.FileIO):
    def read(self, size: int | None = -1) -> bytes:
        Shelf.reads += 1
        if Shelf.reads in Shelf.failing:
            raise Shelf.failing[Shelf.reads]
        if Shelf.cut is not None:
            size = max(0, min(self.seek(0, 1) + (size or 0), Shelf.cut) - self.seek(0, 1))
        data = super().read(size)
        Shelf.largest = max(Shelf.largest, len(data))
        return data


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, instead of waiting."""
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    Shelf.failing, Shelf.opening, Shelf.cut, Shelf.reads, Shelf.opened = {}, [], None, 0, 0
    Shelf.largest = 0
    waited: list[float] = []
    monkeypatch.setattr(sources.time, "sleep", waited.append)
    return waited


def on_shelf(path: Path) -> Clip:
    return clip(path, source_uri=f"shelf://{path}")


def noise(path: Path) -> Path:
    """Two seconds of pictures that take a few hundred kilobytes; its clock starts at 0."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options={"mpegts_copyts": "1", "muxdelay": "0"}) as file:
        stream = file.add_stream("mpeg2video", 24)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 48, 80, "yuv420p", 2_000_000
        for _ in range(48):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(random.integers(0, 256, (48, 80, 3), np.uint8))))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize("fault", AWAY, ids=lambda fault: type(fault).__name__)
def test_a_fault_at_any_read_changes_no_picture(tmp_path: Path, fault: Exception, waits: list[float]) -> None:
    """Whatever the decoder makes of the error: it takes some for the end of the file, and says nothing."""
    one = on_shelf(noise(tmp_path / "a.ts"))
    one = replace(one, start_s=one.start_s + 1.25, end_s=one.end_s + 1.25)
    right = read_clip(one, SHAPE, 24)
    reads = Shelf.reads
    assert reads > 10
    for number in range(1, reads + 1):
        Shelf.reads, Shelf.failing = 0, {number: fault}
        assert torch.equal(read_clip(one, SHAPE, 24), right), number
    assert len(waits) == reads


@pytest.mark.parametrize("fault", AWAY, ids=lambda fault: type(fault).__name__)
def test_storage_that_stays_away_is_no_fault_of_the_clip(tmp_path: Path, fault: Exception, waits: list[float]) -> None:
    one = on_shelf(counting(tmp_path / "a.mp4", 48, 24))
    Shelf.failing = dict.fromkeys(range(1, 10_000), fault)
    with pytest.raises(
        SourceUnavailable, match=r"a\.mp4 cannot be had from storage, tried 7 times in 63 s: "
    ) as raised:
        read_clip(one, SHAPE, 24)
    assert raised.value.__cause__ is fault
    assert not isinstance(raised.value, ValueError)  # which a ClipError is
    assert Shelf.opened == 7
    assert [round(wait / asked, 2) for wait, asked in zip(waits, sources.WAITS_S, strict=True)] == [
        pytest.approx(1, abs=sources.SPREAD)
    ] * 6


@pytest.mark.parametrize("fault", AWAY, ids=lambda fault: type(fault).__name__)
def test_a_store_that_cannot_be_opened_is_asked_again(tmp_path: Path, fault: Exception, waits: list[float]) -> None:
    one = on_shelf(counting(tmp_path / "a.mp4", 48, 24))
    Shelf.opening = [fault, fault]
    assert read_clip(one, SHAPE, 24).shape == (9, 48, 80, 3)
    assert len(waits) == 2 and waits[0] < waits[1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_transfer_that_ends_early_is_no_truncated_file(tmp_path: Path, share: float) -> None:
    path = noise(tmp_path / "a.ts")
    one = on_shelf(path)
    Shelf.cut = int(share * path.stat().st_size)
    with pytest.raises(SourceUnavailable, match=rf"the transfer ended after {Shelf.cut} of \d+ bytes"):
        read_clip(one, Shape(24, 48, 80), 25)


def test_what_would_fail_again_is_the_clips_own_fault_at_once(tmp_path: Path, waits: list[float]) -> None:
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "folder.mp4").mkdir()
    for name in ("none.mp4", "noise.mp4", "folder.mp4"):
        with pytest.raises(ClipError, match=rf"clip clip-0 of .*{name} cannot be read"):
            read_clip(clip(tmp_path / name), SHAPE, 24)
    with pytest.raises(ClipError, match=r"cannot be read: .*noise\.mp4.* no package|cannot be read: .*is known for"):
        read_clip(clip(tmp_path, source_uri="nowhere://bucket/noise.mp4"), SHAPE, 24)
    assert not waits


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_a_source_that_was_replaced_is_refused(tmp_path: Path, name: str) -> None:
    """By its size at any size, by its content where it is small; as curation names it."""
    path, frames = tmp_path / name, 9 if name == "a.mp4" else 1

    def write(level: int) -> None:
        if frames == 1:
            Image.fromarray(np.full((48, 80, 3), level, np.uint8)).save(path, compress_level=0)
        else:
            counting(path, 24, 24)
            path.write_bytes(path.read_bytes() + b"\0\0\0\x0cfree" + level.to_bytes(4, "big"))

    write(100)
    known = replace(clip(path), source_id=fetched(str(path), str(tmp_path)).source_id)
    known = replace(known, source_bytes=path.stat().st_size)
    shape = Shape(frames, 48, 80)
    right = read_clip(known, shape, 24)
    write(101)
    assert path.stat().st_size == known.source_bytes
    with pytest.raises(ClipError, match=r"it is not the file that was curated.*: its content has another hash"):
        read_clip(known, shape, 24)
    assert read_clip(replace(known, source_id=""), shape, 24).shape == right.shape
    path.write_bytes(path.read_bytes() + bytes(8))
    with pytest.raises(ClipError, match=rf"it has {known.source_bytes + 8} bytes, and had {known.source_bytes}"):
        read_clip(replace(known, source_id=""), shape, 24)


def test_a_large_source_is_known_by_its_size_and_is_not_read_whole(tmp_path: Path) -> None:
    path = noise(tmp_path / "a.ts")
    path.write_bytes(path.read_bytes() + bytes(sources.HASHED_BYTES))
    one = replace(on_shelf(path), source_id="not this hash", source_bytes=path.stat().st_size, start_s=1.4, end_s=1.8)
    assert len(read_clip(one, SHAPE, 24)) == 9
    assert 0 < Shelf.largest < 1 << 20


def test_a_draw_of_the_waits_is_none_of_trainings(tmp_path: Path) -> None:
    """Two runs, one of which met a fault, draw the same numbers afterwards."""
    import random

    one = on_shelf(counting(tmp_path / "a.mp4", 48, 24))
    random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    Shelf.opening = [TimeoutError()]
    read_clip(one, SHAPE, 24)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
