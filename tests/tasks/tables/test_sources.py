import pytest

from tasks.tables.sources import PreflightError, check_writable, find_sources, shards_of, write_shards


def listing(count: int) -> list[dict]:
    return [{"source_uri": f"/videos/{i:05d}.mp4", "bytes": 1, "version": "1"} for i in range(count)]


def test_videos_and_images_are_found_in_subfolders_and_other_files_are_not(tmp_path):
    for name in ("a.MP4", "sub/b.webm", "sub/c.jpg", "notes.txt", ".hidden.mp4", ".cache/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [source["source_uri"].removeprefix(f"{tmp_path}/") for source in find_sources(str(tmp_path))]
    assert found == ["a.MP4", "sub/b.webm", "sub/c.jpg"]


def test_one_file_is_a_source_of_its_own(tmp_path):
    (tmp_path / "a.mp4").touch()
    assert [source["source_uri"] for source in find_sources(str(tmp_path / "a.mp4"))] == [str(tmp_path / "a.mp4")]


def test_a_missing_and_an_empty_folder_are_said_to_be_so(tmp_path):
    with pytest.raises(PreflightError, match="does not exist"):
        find_sources(str(tmp_path / "nowhere"))
    with pytest.raises(PreflightError, match="holds no video or image"):
        find_sources(str(tmp_path))


def test_shards_hold_every_source_once_and_about_as_many_as_asked():
    sources = listing(5000)
    shards = list(shards_of(sources, 64))
    assert [source for shard in shards for source in shard] == sources
    assert 5000 / 64 / 2 <= len(shards) <= 5000 / 64 * 2
    assert all(len(shard) <= 128 for shard in shards)


def test_a_new_source_changes_few_shards():
    sources = listing(5000)
    new = {"source_uri": "/videos/02500b.mp4", "bytes": 1, "version": "1"}
    before = {tuple(s["source_uri"] for s in shard) for shard in shards_of(sources, 64)}
    after = {tuple(s["source_uri"] for s in shard) for shard in shards_of([*sources[:2501], new, *sources[2501:]], 64)}
    assert len(after - before) <= 4


def test_a_touched_file_gets_another_shard_file(tmp_path):
    first = write_shards(listing(3), str(tmp_path), 64)
    changed = [source | {"version": "2"} for source in listing(3)]
    assert write_shards(listing(3), str(tmp_path), 64) == first
    assert write_shards(changed, str(tmp_path), 64) != first


def test_shards_of_equal_names_in_two_folders_stay_apart(tmp_path):
    sources = [{"source_uri": f"/{folder}/clip.mp4", "bytes": 1, "version": "1"} for folder in "abcdefgh"]
    tables = write_shards(sources, str(tmp_path), 1)
    names = [table.rsplit("/", 1)[1].split("-")[0] for table in tables]
    assert len(set(names)) == len(names) > 1


def test_an_output_that_is_a_file_cannot_be_written(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(PreflightError, match="cannot be written"):
        check_writable(str(tmp_path / "out"))
