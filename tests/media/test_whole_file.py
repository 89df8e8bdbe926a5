"""A file that is being written is seen whole or not at all: on disks, on object stores, and on stores in between."""

import resource
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from media.output_error import OutputError, OutputMissing
from media.paths import fs_of
from media.whole_file import writing


class FirstNameStays(MemoryFileSystem):
    """A store like SMB and HDFS: a file can be seen while it is put, and no rename replaces another file."""

    protocol = "first-name-stays"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("first-name-stays://").strip("/")

    def mv(self, path1: str, path2: str, **kwargs: object) -> None:
        if self.exists(path2):
            raise FileExistsError(path2)
        self.cp_file(path1, path2)
        self.rm_file(path1)


fsspec.register_implementation("first-name-stays", FirstNameStays, clobber=True)


@pytest.fixture(params=["local", "memory", "first-name-stays", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder of each kind of store. Its name would be a pattern, if names were patterns."""
    if request.param == "local":
        return str(tmp_path / "out [1]")
    if request.param == "s3":
        return request.getfixturevalue("s3") + "/out [1]"
    return f"{request.param}://{uuid.uuid4().hex}/out [1]"


def read(uri: str) -> bytes:
    fs, path = fs_of(uri)
    return fs.cat_file(path)


def names(root: str) -> list[str]:
    """Every file there is, hidden ones and unfinished ones too."""
    fs, path = fs_of(root)
    fs.invalidate_cache()
    return sorted(name.removeprefix(path + "/") for name in fs.find(path))


def write(uri: str, content: bytes) -> None:
    with writing(uri) as file:
        file.write(content)


@contextmanager
def disk_with_room_for(count: int) -> Iterator[None]:
    """No file of this process can grow beyond ``count`` bytes: a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_has_its_new_content_and_nothing_is_left_beside_it(root: str) -> None:
    write(f"{root}/a/file.bin", b"old")
    write(f"{root}/a/file.bin", b"new")
    assert read(f"{root}/a/file.bin") == b"new"
    assert names(root) == ["a/file.bin"]


def test_nothing_is_seen_before_the_end(root: str) -> None:
    with writing(f"{root}/file.bin") as file:
        file.write(b"half" * 1_000_000)
        file.flush()
        assert "file.bin" not in names(root)
    assert names(root) == ["file.bin"]


def test_an_error_of_the_body_comes_out_as_it_is_and_the_old_file_stays(root: str) -> None:
    write(f"{root}/file.bin", b"old")
    problem = ValueError("an error of the source")
    with pytest.raises(ValueError) as raised, writing(f"{root}/file.bin") as file:
        file.write(b"half" * 1_000_000)
        raise problem
    assert raised.value is problem
    assert read(f"{root}/file.bin") == b"old"
    assert names(root) == ["file.bin"]


def test_the_error_of_a_source_that_could_not_be_read_is_no_error_of_the_output(root: str) -> None:
    with pytest.raises(ConnectionResetError) as raised, writing(f"{root}/file.bin"):
        raise ConnectionResetError("the source's server hung up")
    assert not isinstance(raised.value, OutputError)
    assert names(root) == []


def test_writes_nest_and_an_inner_one_that_fails_takes_only_itself_along(root: str) -> None:
    with writing(f"{root}/samples") as samples, writing(f"{root}/track") as track:
        samples.write(b"s" * 3_000_000)
        track.write(b"t")
        write(f"{root}/record", b"r")
        with pytest.raises(RuntimeError), writing(f"{root}/failed") as failed:
            failed.write(b"f")
            raise RuntimeError
        samples.write(b"s")
    assert names(root) == ["record", "samples", "track"]
    assert [len(read(f"{root}/{name}")) for name in ("samples", "track", "record")] == [3_000_001, 1, 1]


def test_sixteen_threads_write_their_files_whole(root: str) -> None:
    contents = {f"{root}/{i % 4}/{i}.bin": bytes([i]) * (1 + 50_000 * i) for i in range(48)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, contents, contents.values()))
    assert {uri: read(uri) for uri in contents} == contents
    assert len(names(root)) == len(contents)


def test_threads_that_fail_do_not_disturb_those_that_write(root: str) -> None:
    def work(i: int) -> None:
        with writing(f"{root}/{i}.bin") as file:
            file.write(bytes([i]) * 100_000)
            if i % 3 == 0:
                raise RuntimeError

    with ThreadPoolExecutor(16) as pool:
        outcomes = [pool.submit(work, i) for i in range(32)]
    assert [bool(outcome.exception()) for outcome in outcomes] == [i % 3 == 0 for i in range(32)]
    assert names(root) == sorted(f"{i}.bin" for i in range(32) if i % 3)


def test_who_reads_during_a_write_sees_the_old_file_or_the_new_one(root: str) -> None:
    if root.startswith("first-name-stays"):
        pytest.skip("such a store cannot replace a file in one step")
    contents = [bytes([i]) * 2_000_000 for i in range(6)]
    uri = f"{root}/file.bin"
    write(uri, contents[0])
    done = threading.Event()

    def replace() -> None:
        for content in contents[1:]:
            write(uri, content)
        done.set()

    seen = set()
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(replace)
        while not done.is_set() and not writer.done():
            seen.add(read(uri))
        writer.result()
    assert seen <= set(contents)
    assert read(uri) == contents[-1]


def test_a_file_that_outgrows_its_disk_is_an_error_of_the_output(root: str) -> None:
    uri = f"{root}/file.bin"
    with disk_with_room_for(100_000), pytest.raises(OutputError, match="File too large") as raised:
        write(uri, b"0" * 5_000_000)
    assert raised.value.errno == 27 and raised.value.filename == uri
    assert names(root) == []


def test_what_the_buffer_still_holds_fails_as_an_error_of_the_output(root: str) -> None:
    with disk_with_room_for(10), pytest.raises(OutputError, match="File too large"):
        write(f"{root}/file.bin", b"0" * 1000)
    assert names(root) == []


def test_after_an_error_of_the_body_a_full_disk_does_not_hide_it(root: str) -> None:
    with disk_with_room_for(10), pytest.raises(ValueError, match="the source"), writing(f"{root}/file.bin") as file:
        file.write(b"0" * 1000)
        raise ValueError("the source")
    assert names(root) == []


def test_a_place_that_cannot_be_written_is_an_error_of_the_output(tmp_path: Path, s3_server: str) -> None:
    (tmp_path / "file").touch()
    write("memory://a-file", b"")
    for uri in (str(tmp_path / "file" / "below"), "memory://a-file/below"):
        with pytest.raises(OutputError):
            write(uri, b"content")
    with pytest.raises(OutputMissing):
        write("s3://no-such-bucket-anywhere/file.bin", b"content")


def test_an_unfinished_file_is_none_for_who_reads_the_whole_folder(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    with writing(str(tmp_path / "part-0.parquet")) as file:
        pq.write_table(pa.table({"x": [1]}), file)
    with writing(str(tmp_path / "part-1.parquet")) as file:
        file.write(b"PAR1 half a table")
        file.flush()
        assert ds.dataset(tmp_path).to_table().to_pylist() == [{"x": 1}]
        file.seek(0)
        file.truncate()
        pq.write_table(pa.table({"x": [2]}), file)
    assert ds.dataset(tmp_path).to_table().to_pylist() == [{"x": 1}, {"x": 2}]
