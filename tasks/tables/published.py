"""Which files below OUT/clips and OUT/manifest are ours: a list beside them, kept so that no crash makes it wrong.

OUT/<name>/.published.json lists, relative to its folder, every file that runs of this OUT have written there. A file is
listed before it is written, and taken off the list after it is removed: so whatever a crash leaves is known. Only
listed files are ever replaced or removed. Readers of Parquet datasets pass over names that begin with a dot.
"""

from collections.abc import Iterable

from media.paths import fs_of, is_local
from tasks.tables import storage

LIST = ".published.json"


def announce(root: str, name: str, files: Iterable[str]) -> None:
    """Put ``files`` (URIs below OUT/``name``) on the list, before they are written.

    Raises FileExistsError for one that stands there and was never listed: it is somebody else's.
    """
    new = {_inside(root, name, file) for file in files}
    listed = published(root, name)
    if not (unknown := new - listed):
        return
    if foreign := sorted(file for file in unknown if storage.exists(storage.join(root, name, file))):
        raise FileExistsError(
            f"{storage.join(root, name, foreign[0])} was not written by a run of this output and would be replaced; "
            "move it away"
        )
    _write(root, name, listed | new)


def publish(root: str, name: str, files: Iterable[str]) -> list[str]:
    """Make ``files`` (URIs below OUT/``name``, written by now) all that our runs have there, and remove the others.

    Returns the URIs of Parquet files that are there and not ours. They stay, but whoever reads the folder as one
    dataset reads them too.
    """
    announce(root, name, files)
    wanted = {_inside(root, name, file) for file in files}
    for gone in sorted(published(root, name) - wanted):
        storage.remove(storage.join(root, name, gone))
        _remove_empty_folders(root, name, gone)
    _write(root, name, wanted)
    there = storage.list_below(storage.join(root, name))
    return [file for file in there if file.endswith(".parquet") and _inside(root, name, file) not in wanted]


def published(root: str, name: str) -> set[str]:
    """The files on the list of OUT/``name``, relative to it."""
    uri = storage.join(root, name, LIST)
    return set(storage.read_json(uri)["files"]) if storage.exists(uri) else set()


def _write(root: str, name: str, files: set[str]) -> None:
    storage.write_json({"files": sorted(files)}, storage.join(root, name, LIST), indent=1)


def _inside(root: str, name: str, uri: str) -> str:
    folder = storage.join(root, name, "")
    if not uri.startswith(folder):
        raise ValueError(f"{uri} is not below {folder}")
    return uri.removeprefix(folder)


def _remove_empty_folders(root: str, name: str, gone: str) -> None:
    """Remove the folders that hold nothing now, up to OUT/``name``. Object stores have none."""
    if not is_local(root):
        return
    fs, folder = fs_of(storage.join(root, name))
    parts = gone.split("/")[:-1]
    while parts and not fs.ls(above := "/".join([folder, *parts])):
        fs.rmdir(above)
        parts.pop()
