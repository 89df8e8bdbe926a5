"""Whose an output folder is: the mark that the first run leaves in it, and what may not be written into.

OUT/contentv.json says which kind of run OUT belongs to. A run of another kind is refused there, and so is any run where
a dataset without a mark stands: nothing that is somebody else's is mixed with ours or removed.
"""

from importlib.metadata import version

from tasks.tables import storage
from tasks.tables.checks import PreflightError

MARK = "contentv.json"
FORMAT = 1

# What a run writes, and would be mixed up with.
_DATA = ("clips", "manifest", "run.json")


def check_owner(root: str, kind: str = "curation") -> None:
    """Raise PreflightError where ``root`` belongs to another kind of run, a later release, or somebody else.

    Reads only. An empty or new folder, and one with other things in it, may be taken.
    """
    mark = read_mark(root)
    if mark is None:
        if found := [name for name in _DATA if storage.exists(storage.join(root, name))]:
            raise PreflightError(
                f"output {root!r} holds {' and '.join(found)} that no {kind} run with a mark ({MARK}) wrote; choose "
                f"another output, or move {' and '.join(found)} away"
            )
        return
    if mark.get("kind") != kind:
        raise PreflightError(
            f"output {root!r} belongs to a run of kind {mark.get('kind')!r}, not {kind!r}; choose another"
        )
    if not isinstance(written := mark.get("format"), int) or written > FORMAT:
        raise PreflightError(
            f"output {root!r} has format {written!r}; this release reads up to {FORMAT}: use the release that wrote "
            f"it ({mark.get('written_by')}), or choose another output"
        )


def claim(root: str, kind: str = "curation") -> None:
    """Leave the mark in ``root``, unless it is there. Raises PreflightError as ``check_owner`` does."""
    check_owner(root, kind)
    if read_mark(root) is None:
        mark = {"kind": kind, "format": FORMAT, "written_by": f"contentv {version('contentv')}"}
        storage.write_json(mark, storage.join(root, MARK), indent=2)


def read_mark(root: str) -> dict[str, object] | None:
    """What the mark of ``root`` says; None where there is none. Raises PreflightError for one that cannot be read."""
    uri = storage.join(root, MARK)
    if not storage.exists(uri):
        return None
    try:
        mark = storage.read_json(uri)
    except OSError as problem:
        raise PreflightError(f"output {root!r}: {MARK} cannot be read: {problem}") from problem
    return mark if isinstance(mark, dict) else {}
