"""OUT is kept on local disks and object stores alike, and its failures are no failures of a source."""

import io
import os
import pickle
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.tables import storage
from tasks.tables.storage import OutputError, OutputMissing

TABLE = pa.table({"x": [1.5, None], "y": [["a"], []], "z": ["é", "\n"]})


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty OUT on each kind of store, with a name that has signs in it."""
    if request.param == "local":
        return str(tmp_path / "out a::b")
    if request.param == "s3":
        return request.getfixturevalue("s3") + "/out"
    return f"memory://{uuid.uuid4().hex}/out"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "table.parquet"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), storage.writing(str(target)) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_table_written_twice_has_the_same_bytes(root: str) -> None:
    for name in ("a", "b"):
        storage.write_table(TABLE, f"{root}/{name}")
    assert storage.read_bytes(f"{root}/a") == storage.read_bytes(f"{root}/b")


def test_a_table_comes_back_whole_or_by_columns(root: str) -> None:
    uri = storage.join(root, "steps", "blur", "table.parquet")
    storage.write_table(TABLE, uri)
    assert storage.exists(uri)
    assert storage.read_table(uri) == TABLE
    assert storage.read_table(uri, columns=["z", "x"]) == TABLE.select(["z", "x"])


def test_json_comes_back(root: str) -> None:
    value = {"inputs": ["é", None, 1.5], "counts": {"a": 1}}
    storage.write_json(value, f"{root}/run.json", indent=2)
    assert storage.read_json(f"{root}/run.json") == value
    storage.write_json([], f"{root}/run.json")
    assert storage.read_json(f"{root}/run.json") == []


def test_pieces_of_a_file_are_read(root: str) -> None:
    with storage.writing(f"{root}/file") as file:
        file.write(b"0123456789")
    with storage.open_read(f"{root}/file") as file:
        file.seek(-3, io.SEEK_END)
        assert (file.read(2), file.read(), file.size) == (b"78", b"9", 10)


def test_what_is_below_a_folder_is_listed_by_the_names_it_was_written_by(root: str) -> None:
    written = [storage.join(root, *parts) for parts in (("run.json",), ("clips", "a.parquet"), ("clips", "b", "c"))]
    for uri in written:
        storage.write_json(1, uri)
    assert storage.list_below(root) == sorted(written)
    assert storage.list_below(f"{root}/clips/") == sorted(written[1:])
    assert storage.list_below(f"{root}/nothing") == []


def test_a_file_that_is_being_written_is_not_listed(root: str) -> None:
    with storage.writing(f"{root}/file") as file:
        file.write(b"half")
        file.flush()
        assert storage.list_below(root) == []
    assert storage.list_below(root) == [f"{root}/file"]


def test_a_removed_file_is_gone_and_removing_it_again_is_no_error(root: str) -> None:
    storage.write_json(1, f"{root}/a [1]")
    storage.write_json(1, f"{root}/a 1")
    for _ in range(2):
        storage.remove(f"{root}/a [1]")
        assert not storage.exists(f"{root}/a [1]")
    assert storage.exists(f"{root}/a 1")


def test_what_another_process_wrote_since_a_listing_is_found(s3: str) -> None:
    import boto3

    storage.write_json(1, f"{s3}/out/a")
    assert storage.list_below(f"{s3}/out") == [f"{s3}/out/a"]
    bucket = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    bucket.put_object(Bucket=s3.removeprefix("s3://"), Key="out/b", Body=b"22")
    assert storage.exists(f"{s3}/out/b")
    assert storage.read_json(f"{s3}/out/b") == 22
    assert storage.list_below(f"{s3}/out") == [f"{s3}/out/a", f"{s3}/out/b"]


def test_a_file_that_is_not_there_is_an_error_of_the_output(root: str) -> None:
    uri = f"{root}/none.parquet"
    with pytest.raises(OutputMissing, match=r"none\.parquet"):
        storage.read_table(uri)
    with pytest.raises(OutputMissing):
        storage.read_table(uri, columns=["x"])
    with pytest.raises(OutputMissing):
        storage.read_json(uri)
    with pytest.raises(OutputMissing), storage.open_read(uri):
        pass


def test_a_table_that_cannot_be_read_is_an_error_of_the_output(root: str) -> None:
    with storage.writing(f"{root}/table.parquet") as file:
        file.write(b"PAR1 no table PAR1")
    for columns in (None, ["x"]):
        with pytest.raises(OutputError, match=r"table\.parquet") as raised:
            storage.read_table(f"{root}/table.parquet", columns)
        assert raised.value.__cause__ is not None
    with pytest.raises(OutputError):
        storage.read_json(f"{root}/table.parquet")


def test_a_store_that_does_not_answer_is_not_an_absent_file(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    # The port of a server that has gone, and a store object of its own.
    closed = s3fs.S3FileSystem(endpoint_url="http://127.0.0.1:9", skip_instance_cache=True, retries=1)
    closed.config_kwargs = {"retries": {"max_attempts": 0}}
    monkeypatch.setattr(storage, "fs_of", lambda uri: (closed, "bucket/file"))
    with pytest.raises(OutputError):
        storage.exists("s3://bucket/file")


def test_a_failing_read_inside_the_body_is_told_apart_from_the_body_s_own(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"0" * 1000)
    with pytest.raises(OutputError), storage.open_read(str(target)) as file:
        target.write_bytes(b"")
        file.read()
    with pytest.raises(ValueError) as raised, storage.open_read(str(target)):
        raise ValueError("cannot be measured")
    assert not isinstance(raised.value, OutputError)


def test_an_error_of_the_output_crosses_processes_with_its_number_and_words() -> None:
    problem = storage.OutputError(28, "No space left on device", "/out/file")
    again = pickle.loads(pickle.dumps(problem))
    assert type(again) is OutputError
    assert (again.errno, str(again)) == (28, str(problem))
    assert "No space left on device" in str(again)


def test_content_hash_depends_on_bytes_not_names(root: str) -> None:
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"other")):
        with storage.writing(f"{root}/{name}") as file:
            file.write(content)
    a, b, c = (storage.content_hash(f"{root}/{name}") for name in "abc")
    assert a == b != c


def test_a_source_that_cannot_be_hashed_is_no_error_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        storage.content_hash(str(tmp_path / "none.mp4"))
    assert not isinstance(raised.value, OutputError)
