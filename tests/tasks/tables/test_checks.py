import os
from pathlib import Path

import pytest

from tasks.tables.checks import ROOTS, PreflightError, check_place, is_allowed
from tasks.tables.sources import look


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")


def test_without_the_variable_every_place_is_allowed_and_with_an_empty_one_none(monkeypatch):
    monkeypatch.delenv(ROOTS, raising=False)
    assert is_allowed("/etc/videos") and is_allowed("s3://anything")
    monkeypatch.setenv(ROOTS, "")
    assert not is_allowed("/etc/videos") and not is_allowed("s3://anything")


@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        ("/data", True),
        ("/data/", True),
        ("/data/a/b.mp4", True),
        ("file:///data/a%20b", True),
        ("/data/../etc", False),
        ("/database", False),
        ("/", False),
        ("s3://bucket/videos", True),
        ("S3://bucket/videos/a.mp4", True),
        ("s3://bucket/videos2", False),
        ("s3://bucket/videos/../secret", False),
        ("s3://bucket", False),
        ("gs://bucket/videos", False),
    ],
)
def test_a_place_is_allowed_below_a_root_and_nowhere_else(monkeypatch, place, allowed):
    monkeypatch.setenv(ROOTS, "/data, s3://bucket/videos/")
    assert is_allowed(place) == allowed


def test_the_root_of_all_files_allows_all_files_and_no_store(monkeypatch):
    monkeypatch.setenv(ROOTS, "/")
    assert is_allowed("/any/file") and not is_allowed("s3://bucket")


def test_source_and_output_are_refused_in_words(monkeypatch, tmp_path):
    monkeypatch.setenv(ROOTS, str(tmp_path / "in"))
    with pytest.raises(PreflightError, match=f"output '/elsewhere' is not allowed .* {ROOTS} is '{tmp_path}/in'"):
        check_place("/elsewhere", "output")
    with pytest.raises(PreflightError, match="is not allowed"):
        look(str(tmp_path / "out"))


def test_links_that_lead_out_of_a_root_are_passed_over(monkeypatch, tmp_path):
    touch(tmp_path, "in/a.mp4", "out/b.mp4", "out/folder/c.mp4")
    os.symlink(tmp_path / "out/b.mp4", tmp_path / "in/b.mp4")
    os.symlink(tmp_path / "out/folder", tmp_path / "in/folder")
    assert look(str(tmp_path / "in")).sources.num_rows == 3
    monkeypatch.setenv(ROOTS, str(tmp_path / "in"))
    found = look(str(tmp_path / "in"))
    assert found.sources["source_uri"].to_pylist() == [f"{tmp_path}/in/a.mp4"]
    assert found.passed_over == {"files outside of the allowed places": 2}


@pytest.mark.parametrize("line", ["../out/b.mp4", "{root}/out/b.mp4", "s3://bucket/b.mp4"])
def test_a_list_that_names_a_place_outside_is_refused(monkeypatch, tmp_path, line):
    touch(tmp_path, "in/a.mp4", "out/b.mp4")
    (tmp_path / "in/list.csv").write_text(f"path\na.mp4\n{line.format(root=tmp_path)}\n")
    monkeypatch.setenv(ROOTS, str(tmp_path / "in"))
    with pytest.raises(PreflightError, match=r"b\.mp4' is not allowed"):
        look(str(tmp_path / "in/list.csv"))
