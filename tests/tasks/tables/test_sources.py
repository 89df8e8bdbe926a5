import os
import socket
from collections import Counter
from pathlib import Path

import pytest
from fsspec import filesystem

from media.paths import path_of_uri
from tasks.tables.checks import PreflightError, check_place, check_writable
from tasks.tables.owner import claim
from tasks.tables.sources import find_sources, look


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root: Path | str, source: Path | str | None = None) -> list[str]:
    return [uri.removeprefix(f"{root}/") for uri in find_sources(str(source or root))["source_uri"].to_pylist()]


def versions(root: Path) -> list[str]:
    return find_sources(str(root))["version"].to_pylist()


def test_videos_and_images_are_found_in_subfolders_and_other_files_are_not(tmp_path):
    touch(tmp_path, "a.MP4", "sub/b.webm", "sub/c.jpg", "notes.txt", ".hidden.mp4", ".cache/d.mp4", "mp4")
    assert names(tmp_path) == ["a.MP4", "sub/b.webm", "sub/c.jpg"]


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.avif", "a.mts", "a.M2TS", "a.webm", "a.mxf", "a.jfif"])
def test_kinds_that_cameras_and_phones_write_are_taken(tmp_path, name):
    touch(tmp_path, name)
    assert names(tmp_path) == [name]


def test_one_file_is_a_source_of_its_own(tmp_path):
    touch(tmp_path, "a::b.mp4", "c.mp4")
    assert names(tmp_path, tmp_path / "a::b.mp4") == ["a::b.mp4"]


def test_a_missing_and_an_empty_folder_are_said_to_be_so(tmp_path):
    with pytest.raises(PreflightError, match="does not exist"):
        find_sources(str(tmp_path / "nowhere"))
    with pytest.raises(PreflightError, match="holds no video or image"):
        find_sources(str(tmp_path))


def test_names_of_any_bytes_are_found_and_open(tmp_path):
    odd = [os.fsdecode(b"caf\xe9.mp4"), "a::b.mp4", "img%d.jpg", "a#b %41.mp4", "new\nline.mp4"]
    for name in odd:
        Path(tmp_path, name).write_text(name, errors="surrogateescape")
    found = {Path(path_of_uri(uri)).name for uri in find_sources(str(tmp_path))["source_uri"].to_pylist()}
    assert found == set(odd)


def test_linked_files_and_folders_are_read_once_and_a_loop_ends(tmp_path):
    library, elsewhere = tmp_path / "library", tmp_path / "elsewhere"
    touch(library, "own/a.mp4")
    touch(elsewhere, "far/b.mp4", "c.mp4")
    (library / "linked").symlink_to(elsewhere / "far")
    (library / "linked again").symlink_to(elsewhere / "far")
    (library / "one.mp4").symlink_to(elsewhere / "c.mp4")
    (library / "own" / "loop").symlink_to(library)
    (library / "a link to own").symlink_to(library / "own")
    (library / "same.mp4").symlink_to(library / "own" / "a.mp4")
    (library / "lost.mp4").symlink_to(tmp_path / "nowhere")
    found = look(str(library))
    assert names(library) == ["linked/b.mp4", "one.mp4", "own/a.mp4"]
    assert found.passed_over == {
        "linked folders that are read anyway": 3,
        "links to files that are taken anyway": 1,
        "links to nowhere": 1,
    }


def test_pipes_sockets_devices_and_folders_are_no_sources_and_are_not_opened(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "folder.mp4/inside.mp4", "empty.mp4/notes.txt")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "linked pipe.mp4").symlink_to(tmp_path / "pipe.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket has a short name
        server.bind("socket.mp4")
    found = look(str(tmp_path))
    assert names(tmp_path) == ["a.mp4", "folder.mp4/inside.mp4"]
    assert found.passed_over["pipes"] >= 1 and found.passed_over["sockets"] == found.passed_over["devices"] == 1
    assert "device.mp4" in str(found) and "1 sockets" in str(found)
    with pytest.raises(PreflightError, match="1 pipes"):
        look(str(tmp_path / "pipe.mp4"))


def test_a_folder_that_may_not_be_read_is_counted_and_does_not_end_the_search(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    touch(tmp_path, "a.mp4", "closed/b.mp4")
    (tmp_path / "closed").chmod(0)
    try:
        assert look(str(tmp_path)).passed_over == {"folders that cannot be read": 1}
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_the_output_of_a_run_below_the_sources_is_no_source(tmp_path):
    touch(tmp_path, "a.mp4", "out/pictures/b.jpg")
    claim(str(tmp_path / "out"))
    assert names(tmp_path) == ["a.mp4"]


def test_a_replaced_file_of_the_same_size_and_time_has_another_version(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"one")
    os.utime(file, ns=(10**18, 10**18))
    before = versions(tmp_path)
    assert versions(tmp_path) == before

    file.write_bytes(b"two")  # in its place: the inode's own time tells
    os.utime(file, ns=(10**18, 10**18))
    in_place = versions(tmp_path)

    other = tmp_path / "b"
    other.write_bytes(b"six")
    os.utime(other, ns=(10**18, 10**18))
    other.rename(file)
    assert len({*before, *in_place, *versions(tmp_path)}) == 3


def test_an_object_store_is_searched_like_a_disk():
    store = filesystem("memory")
    for name in ("a.mp4", "sub/b::c.JPG", "sub/notes.txt", ".hidden/d.mp4", "sub/.e.mp4", "out/f.jpg"):
        store.pipe_file(f"/searched/{name}", b"x")
    claim("memory://searched/out")
    found = look("memory://searched")
    assert found.sources["source_uri"].to_pylist() == ["memory://searched/a.mp4", "memory://searched/sub/b::c.JPG"]
    assert found.sources["bytes"].to_pylist() == [1, 1]
    assert find_sources("memory://searched/a.mp4").num_rows == 1
    assert found.passed_over == Counter(
        {"hidden files and folders": 2, "files in output folders of a run": 2, "files with other extensions": 1}
    )


def test_a_replaced_object_has_another_version(s3):
    store = filesystem("s3")
    store.pipe_file(f"{s3}/videos/a.mp4", b"one")
    before = find_sources(f"{s3}/videos")
    store.pipe_file(f"{s3}/videos/a.mp4", b"two")
    after = find_sources(f"{s3}/videos")
    assert before["source_uri"].to_pylist() == after["source_uri"].to_pylist() == [f"{s3}/videos/a.mp4"]
    assert before["version"] != after["version"]


@pytest.mark.parametrize("uri", ["zip://a.mp4::/v/b.zip", "nonsense://bucket/a", "simplecache::s3://bucket/a"])
def test_what_is_no_store_is_refused_as_source_and_as_output(uri):
    with pytest.raises(PreflightError, match=r"^source"):
        find_sources(uri)
    with pytest.raises(PreflightError, match=r"^output"):
        check_place(uri, "output")


def test_an_output_that_is_a_file_cannot_be_written(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(PreflightError, match="cannot be written"):
        check_writable(str(tmp_path / "out"))


def test_links_that_lead_nowhere_or_to_each_other_are_passed_over(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "itself.mp4").symlink_to(tmp_path / "itself.mp4")
    (tmp_path / "one.mp4").symlink_to(tmp_path / "other.mp4")
    (tmp_path / "other.mp4").symlink_to(tmp_path / "one.mp4")
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "above").symlink_to(tmp_path)
    found = find_sources(str(tmp_path))["source_uri"].to_pylist()
    assert found == [str(tmp_path / "a.mp4")]
