import pyarrow as pa
import pytest

from tasks.tables import storage
from tasks.tables.tally import ShardSize, bytes_below, errors_in, shard_size


@pytest.mark.parametrize("errors", [[], [None, None], ["a", None, "b"], ["a"] * 5])
def test_errors_are_the_rows_whose_error_is_not_null(tmp_path, errors):
    table = pa.table({"rejected_by": [["error"]] * len(errors), "error": pa.array(errors, pa.string())})
    storage.write_table(table, str(tmp_path / "t.parquet"), rows_per_group=2)
    assert errors_in(str(tmp_path / "t.parquet")) == sum(error is not None for error in errors)


def test_a_table_without_such_a_column_has_no_errors(tmp_path):
    storage.write_table(pa.table({"clip_id": ["a"]}), str(tmp_path / "t.parquet"))
    assert errors_in(str(tmp_path / "t.parquet")) == 0


def test_a_shard_is_as_large_as_its_sources(tmp_path):
    storage.write_table(pa.table({"source_uri": ["a", "b"], "bytes": [10, 32]}), str(tmp_path / "t.parquet"))
    assert shard_size(str(tmp_path / "t.parquet")) == ShardSize(2, 42)


@pytest.mark.parametrize("root", ["memory://tally-of-bytes", None])
def test_the_bytes_of_a_folder_are_those_of_all_files_below(tmp_path, root):
    root = root or str(tmp_path)
    for name in ("a", "b/c", "b/d/e"):
        with storage.writing(storage.join(root, name)) as file:
            file.write(b"0" * 100)
    assert bytes_below(root) == 300
