"""Pieces of a file are read with one request each, and no byte that was not asked for."""

import io
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from media.range_file import RangeFile, open_ranges
from media.whole_file import writing

CONTENT = bytes(range(256)) * 4000


class Counted(MemoryFileSystem):
    """A store that keeps the ranges that were read of it."""

    protocol = "counted"
    ranges: list[tuple[int, int]] = []  # noqa: RUF012  one list for all instances, as fsspec keeps them

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("counted://").strip("/")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: object) -> bytes:
        self.ranges.append((start or 0, end or 0))
        return bytes(super().cat_file(path, start, end))


fsspec.register_implementation("counted", Counted, clobber=True)


@pytest.fixture(params=["local", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    root = {"local": str(tmp_path), "memory": f"memory://{uuid.uuid4().hex}"}.get(request.param)
    uri = f"{root or request.getfixturevalue('s3')}/file.bin"
    with writing(uri) as file:
        file.write(CONTENT)
    return uri


def test_it_reads_as_any_file_does(uri: str) -> None:
    other = io.BytesIO(CONTENT)
    with open_ranges(uri) as file:
        assert file.size == len(CONTENT)
        for offset, whence, count in ((5, 0, 10), (-7, 2, 3), (2, 1, 100), (0, 0, 0), (-300, 2, -1), (10**7, 0, 5)):
            assert file.seek(offset, whence) == other.seek(offset, whence)
            assert file.read(count) == other.read(count)
            assert file.tell() == other.tell()


def test_every_read_is_one_request_for_the_bytes_it_names() -> None:
    with writing("counted://file.bin") as file:
        file.write(CONTENT)
    Counted.ranges.clear()
    with open_ranges("counted://file.bin") as file:
        file.seek(1000)
        file.read(24)
        file.seek(-8, io.SEEK_END)
        file.read()
        file.read()
    assert Counted.ranges == [(1000, 1024), (len(CONTENT) - 8, len(CONTENT))]


def test_threads_with_a_view_each_do_not_move_each_other(uri: str) -> None:
    def read(start: int) -> bool:
        view = file.view()
        view.seek(start)
        return view.read(1000) + view.read(1000) == CONTENT[start : start + 2000]

    with open_ranges(uri) as file, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(0, 900_000, 9001)))


def test_any_file_that_can_seek_has_ranges() -> None:
    file = RangeFile.of(io.BytesIO(CONTENT))
    assert (file.size, file.read(3), RangeFile.of(file).read(2)) == (len(CONTENT), CONTENT[:3], CONTENT[:2])


def test_a_file_that_was_cut_while_it_was_read_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(CONTENT)
    with open_ranges(str(target)) as file:
        target.open("r+b").truncate(100)
        file.seek(90)
        with pytest.raises(OSError, match="10 of 20 bytes"):
            file.read(20)


def test_a_file_that_is_not_there_is_said(tmp_path: Path, s3: str) -> None:
    for root in (str(tmp_path), s3, "memory://nowhere"):
        with pytest.raises(FileNotFoundError), open_ranges(f"{root}/none"):
            pass
