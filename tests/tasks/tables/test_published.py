import pytest

from tasks.tables import published as module
from tasks.tables import storage
from tasks.tables.published import announce, publish, published


@pytest.fixture(params=["local", "local ::", "memory", "s3"])
def root(request, tmp_path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/out"
    return f"memory://published-{tmp_path.name}" if request.param == "memory" else f"{tmp_path}/{request.param}"


def uris(root: str, *names: str) -> set[str]:
    return {storage.join(root, "manifest", name) for name in names}


def write(root: str, *names: str) -> set[str]:
    files = uris(root, *names)
    announce(root, "manifest", files)
    for uri in files:
        with storage.writing(uri) as file:
            file.write(uri.encode())
    return files


def foreign(root: str, name: str) -> str:
    (uri,) = uris(root, name)
    with storage.writing(uri) as file:
        file.write(b"theirs")
    return uri


def there(root: str) -> set[str]:
    return {uri for uri in storage.list_below(storage.join(root, "manifest")) if uri.endswith(".parquet")}


def test_files_of_an_earlier_run_that_are_wanted_no_more_are_removed(root):
    publish(root, "manifest", write(root, "a=1/x.parquet", "a=2/y.parquet"))
    assert publish(root, "manifest", write(root, "a=2/y.parquet", "a=3/z.parquet")) == []
    assert there(root) == uris(root, "a=2/y.parquet", "a=3/z.parquet")
    assert published(root, "manifest") == {"a=2/y.parquet", "a=3/z.parquet"}


def test_files_of_others_stay_and_are_named(root):
    theirs = foreign(root, "a=1/theirs.parquet")
    foreign(root, "a=1/readme.txt")
    assert publish(root, "manifest", write(root, "a=1/x.parquet")) == [theirs]
    assert publish(root, "manifest", write(root, "a=2/y.parquet")) == [theirs]
    assert there(root) == {theirs} | uris(root, "a=2/y.parquet")
    assert storage.read_bytes(theirs) == b"theirs"


def test_a_file_of_others_is_never_replaced(root):
    theirs = foreign(root, "part-0.parquet")
    with pytest.raises(FileExistsError, match=r"part-0\.parquet was not written by a run of this output"):
        write(root, "part-0.parquet")
    assert storage.read_bytes(theirs) == b"theirs" and published(root, "manifest") == set()


def test_what_a_killed_run_wrote_is_removed_by_the_next(root):
    write(root, "half.parquet")  # and was never published
    publish(root, "manifest", write(root, "whole.parquet"))
    assert there(root) == uris(root, "whole.parquet")


@pytest.mark.parametrize("step", ["remove", "_write"])
def test_a_crash_between_removing_and_listing_leaves_nothing_wrong(root, monkeypatch, step):
    publish(root, "manifest", write(root, "a.parquet", "b.parquet", "c.parquet"))
    kept = write(root, "c.parquet", "d.parquet")
    place = storage if step == "remove" else module
    real = getattr(place, step)
    calls = []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == (2 if step == "remove" else 1):
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, step, dies)
        with pytest.raises(KeyboardInterrupt):
            publish(root, "manifest", kept)
    assert there(root) >= kept
    assert publish(root, "manifest", kept) == []
    assert there(root) == kept


def test_folders_that_hold_nothing_any_more_go_and_others_stay(tmp_path):
    root = str(tmp_path)
    publish(root, "manifest", write(root, "a=1/b=1/x.parquet", "a=2/b=1/x.parquet"))
    (tmp_path / "manifest" / "a=2" / "notes.txt").touch()
    publish(root, "manifest", write(root, "y.parquet"))
    assert {path.name for path in (tmp_path / "manifest").rglob("*")} == {
        *(".published.json", "y.parquet", "a=2", "notes.txt")
    }


def test_a_list_goes_with_its_folder_when_the_output_is_moved(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    publish(str(old), "manifest", write(str(old), "a.parquet"))
    old.rename(new)
    publish(str(new), "manifest", write(str(new), "b.parquet"))
    assert there(str(new)) == uris(str(new), "b.parquet")
