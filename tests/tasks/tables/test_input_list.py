import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import filesystem

from tasks.tables.checks import PreflightError
from tasks.tables.found import PASSED
from tasks.tables.shards import check_passed, read_passthrough, write_passthrough, write_shards
from tasks.tables.sources import find_sources, look


def videos(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")


def passed(source: Path | str, root: Path, about: int = 64) -> pa.Table:
    return pa.concat_tables(map(read_passthrough, write_passthrough(find_sources(str(source)), str(root), about)))


@pytest.mark.parametrize("column", ["source_uri", "uri", "url", "path", "video", "Path", " URL"])
def test_a_list_names_files_by_paths_that_start_at_its_folder(tmp_path, column):
    videos(tmp_path, "a.mp4", "sub/b, c.mp4", "no extension")
    (tmp_path / "list.csv").write_text(f'{column},licence\n"sub/b, c.mp4",CC0\n{tmp_path}/a.mp4,BY\nno extension,\n')
    found = find_sources(str(tmp_path / "list.csv"))
    assert found["source_uri"].to_pylist() == [f"{tmp_path}/{n}" for n in ("a.mp4", "no extension", "sub/b, c.mp4")]
    assert found["bytes"].to_pylist() == [5, 5, 5]
    assert found[PASSED + "licence"].to_pylist() == ["BY", None, "CC0"]


def test_listed_files_have_the_versions_that_they_have_in_a_folder(tmp_path):
    videos(tmp_path, "v/a.mp4", "v/b.mp4")
    (tmp_path / "list.csv").write_text("path\nv/a.mp4\nv/b.mp4\n")
    assert find_sources(str(tmp_path / "list.csv")).equals(find_sources(str(tmp_path / "v")))


def test_columns_of_csv_are_text_to_the_letter(tmp_path):
    text = '\ufeffpath,id,date,caption,tags\na.mp4,0012,2024-01-02,"two\nlines, ""quoted""",\nb.mp4,1e5,,"",NA\n'
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    assert passed(tmp_path / "list.csv", tmp_path).drop_columns(["source_uri"]).to_pylist() == [
        {"id": "0012", "date": "2024-01-02", "caption": 'two\nlines, "quoted"', "tags": None},
        {"id": "1e5", "date": None, "caption": "", "tags": "NA"},
    ]


def test_columns_of_parquet_keep_their_types(tmp_path):
    table = pa.table(
        {
            "url": ["b.mp4", "a.mp4"],
            "caption": pa.array(["two", None]),
            "large": pa.array(["x", "y"], pa.large_string()),
            "score": pa.array([1.5, 2.5], pa.float32()),
            "tags": pa.array([["x", "y"], []]),
            "taken": pa.array([0, 1], pa.timestamp("us", "UTC")),
            "kind": pa.array(["p", "q"]).dictionary_encode(),
            "more": pa.array([{"n": 1}, {"n": 2}]),
            "raw": pa.array([b"\xff", b""]),
            "bytes": pa.array([7, 8], pa.int8()),
        },
    )
    pq.write_table(table, tmp_path / "list.parquet")
    found = passed(tmp_path / "list.parquet", tmp_path)
    expected = table.take([1, 0])
    for name in table.column_names[1:]:
        assert found.schema.field(name).type == table.schema.field(name).type, name
        assert found[name].to_pylist() == expected[name].to_pylist()


def test_lines_of_json_keep_texts_numbers_lists_and_fields_that_few_have(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.tables.input_list.ROWS_AT_ONCE", 2)
    rows = [
        {"video": "a.mp4", "date": "2020-01-01", "n": 1, "box": {"x": 1}},
        {"video": "b.mp4", "n": 2},
        {"video": "c.mp4", "n": 2.5, "tags": ["u"], "box": {"y": "z"}},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = passed(tmp_path / "list.jsonl", tmp_path).to_pylist()
    assert [row["date"] for row in found] == ["2020-01-01", None, None]
    assert [row["n"] for row in found] == [1.0, 2.0, 2.5]
    assert found[2]["tags"] == ["u"] and found[2]["box"] == {"x": None, "y": "z"}


def test_what_is_not_there_or_no_file_stays_in_the_list_and_is_not_opened(tmp_path):
    videos(tmp_path, "a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "list.csv").write_text("path\na.mp4\nlost.mp4\npipe.mp4\n.\nzip://b.mp4\nnonsense://c\n")
    found = find_sources(str(tmp_path / "list.csv"))
    sizes = dict(zip(found["source_uri"].to_pylist(), found["bytes"].to_pylist(), strict=True))
    assert sizes == {
        **{f"{tmp_path}/a.mp4": 5, f"{tmp_path}/lost.mp4": 0, f"{tmp_path}/pipe.mp4": 0},
        **{str(tmp_path): 0, "zip://b.mp4": 0, "nonsense://c": 0},
    }


def test_a_file_that_appears_has_another_version_than_when_it_was_missing(tmp_path):
    (tmp_path / "list.csv").write_text("path\na.mp4\n")
    before = find_sources(str(tmp_path / "list.csv"))["version"]
    videos(tmp_path, "a.mp4")
    assert find_sources(str(tmp_path / "list.csv"))["version"] != before


def test_a_file_listed_twice_counts_once_with_its_first_row(tmp_path):
    (tmp_path / "list.csv").write_text(f"path,n\nb.mp4,0\na.mp4,1\n{tmp_path}/a.mp4,2\n./sub/../a.mp4,3\n,4\n  ,5\n")
    found = look(str(tmp_path / "list.csv"))
    assert found.sources["+n"].to_pylist() == ["1", "0"]
    assert found.passed_over == {"rows of a file listed before": 2, "rows without a URI": 2}


def test_a_list_in_a_bucket_names_its_neighbours_and_files_anywhere(tmp_path, s3):
    videos(tmp_path, "a.mp4")
    store = filesystem("s3")
    store.pipe_file(f"{s3}/v/b.mp4", b"1234")
    filesystem("memory").pipe_file("/listed/c::d.mp4", b"123")
    store.pipe_file(
        f"{s3}/lists/list.csv", f"uri\n../v/b.mp4\n{s3}/v/b.mp4\n{tmp_path}/a.mp4\nmemory://listed/c::d.mp4\n".encode()
    )
    found = find_sources(f"{s3}/lists/list.csv")
    sizes = dict(zip(found["source_uri"].to_pylist(), found["bytes"].to_pylist(), strict=True))
    assert sizes[f"{s3}/v/b.mp4"] == 4 and sizes[f"{tmp_path}/a.mp4"] == 5 and sizes["memory://listed/c::d.mp4"] == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,licence\na.mp4,x\n", "no column of URIs.*'name', 'licence'"),
        ("url,path\nhttp://x,a.mp4\n", "call the one that names the files source_uri"),
        ("path,n,n\na.mp4,1,2\n", "two columns called 'n'"),
        ("path\n", "names no file"),
        ("", "cannot be read as a list"),
        ("path,n\na.mp4,1\nb.mp4\n", "cannot be read as a list"),
        (b"path\n\xff\xfe.mp4\n", "cannot be read as a list"),
    ],
)
def test_a_list_that_cannot_be_understood_is_refused_in_words(tmp_path, text, words):
    (tmp_path / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PreflightError, match=words):
        find_sources(str(tmp_path / "list.csv"))


def test_a_bad_line_of_json_is_told_by_its_number(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"path": "a.mp4"}\n\n{"path": }\n')
    with pytest.raises(PreflightError, match="line 3 is no JSON"):
        find_sources(str(tmp_path / "list.jsonl"))


def test_source_uri_goes_before_other_names(tmp_path):
    (tmp_path / "list.csv").write_text("url,source_uri\nhttp://x,a.mp4\n")
    assert passed(tmp_path / "list.csv", tmp_path).to_pylist() == [
        {"source_uri": f"{tmp_path}/a.mp4", "url": "http://x"}
    ]


def test_a_column_of_ours_is_refused_in_words(tmp_path):
    (tmp_path / "list.csv").write_text("path,blur\na.mp4,1\n")
    found = find_sources(str(tmp_path / "list.csv"))
    check_passed(found, {"motion"})
    with pytest.raises(PreflightError, match="'blur'"):
        check_passed(found, {"blur"})


def test_passed_columns_go_with_their_shard_and_change_no_list_of_sources(tmp_path):
    def write(licence: str) -> tuple[list[str], list[str]]:
        lines = [f"v/{i:03d}.mp4,{licence},{i}" for i in range(300)]
        (tmp_path / "list.csv").write_text("\n".join(["path,licence,n", *lines]))
        sources = find_sources(str(tmp_path / "list.csv"))
        return write_shards(sources, str(tmp_path), 16), write_passthrough(sources, str(tmp_path), 16)

    lists, columns = write("CC0")
    assert len(lists) == len(columns) > 5
    for listed, brought in zip(lists, columns, strict=True):
        assert listed.rsplit("/", 1)[1].rsplit("-", 1)[0] == brought.rsplit("/", 1)[1].rsplit("-", 1)[0]
        own = pq.read_table(listed)["source_uri"].to_pylist()
        assert read_passthrough(brought)["source_uri"].to_pylist() == own
        assert [int(uri[-7:-4]) for uri in own] == [int(n) for n in read_passthrough(brought)["n"].to_pylist()]
    again, others = write("BY")
    assert again == lists and not set(others) & set(columns)


def test_a_folder_brings_no_columns(tmp_path):
    videos(tmp_path, "a.mp4")
    assert write_passthrough(find_sources(str(tmp_path)), str(tmp_path), 64) == []
