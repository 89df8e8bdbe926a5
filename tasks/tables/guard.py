"""The one guard. Whatever is done for one source, one clip or one page runs under it: any exception but those of OUT's
own storage becomes the ``error`` of its rows, with the file's name, and the others go on.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tasks.tables.faults import passing
from tasks.tables.step import Row
from tasks.tables.storage import OutputError


@dataclass
class Faults:
    """What happened under the guards of one piece of work."""

    passed: bool = False  # a fault that may be gone next time: nothing that has it may be kept


@contextmanager
def guarded(rows: Sequence[Row], step: str, faults: Faults) -> Iterator[None]:
    """Turn what goes wrong inside into the ``error`` of ``rows``, as ``step: file: words``.

    OutputError goes on: when OUT cannot be read or written, no row is to blame, and the step must end.
    """
    try:
        yield
    except OutputError:
        raise
    except Exception as problem:
        faults.passed |= passing(problem)
        for row in rows:
            row["error"] = f"{step}: {file_name(row)}: {words_of(problem)}"


def words_of(problem: BaseException) -> str:
    """What an exception says, or its class where it says nothing; of characters that are no text, their numbers."""
    return _text(str(problem)) or type(problem).__name__


def file_name(row: Row) -> str:
    return _text(str(row.get("source_uri", "")).rsplit("/", 1)[-1])


def _text(words: str) -> str:
    return words.encode("utf-8", "backslashreplace").decode()
