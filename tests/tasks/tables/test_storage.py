import pyarrow as pa
import pytest

from tasks.tables import storage


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "table.parquet"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), storage.writing(str(target)) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_table_written_twice_has_the_same_bytes(tmp_path):
    table = pa.table({"x": [1.5, None], "y": [["a"], []]})
    for name in ("a", "b"):
        storage.write_table(table, str(tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert storage.read_table(str(tmp_path / "a")) == table


def test_object_stores_and_disks_behave_alike():
    table = pa.table({"x": [1, 2]})
    storage.write_table(table, "memory://bucket/folder/table.parquet")
    assert storage.exists("memory://bucket/folder/table.parquet")
    assert storage.read_table("memory://bucket/folder/table.parquet", columns=["x"]) == table


def test_a_failed_upload_leaves_nothing():
    with pytest.raises(RuntimeError), storage.writing("memory://bucket/half.parquet") as file:
        file.write(b"half")
        raise RuntimeError
    assert not storage.exists("memory://bucket/half.parquet")


def test_content_hash_depends_on_bytes_not_names(tmp_path):
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"other")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (storage.content_hash(str(tmp_path / name)) for name in "abc")
    assert a == b != c
