"""The errors of a program's own output: what fails where results are kept, told apart from what fails in a source."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class OutputError(OSError):
    """The storage that results are kept in failed: it is full, out of reach, closed to us, or holds a broken file.

    Has the ``errno`` and the words of the error that it stands for, which is its ``__cause__``. No source, clip or
    page is to blame for it, so it ends the work and never becomes the error of a row.
    """


class OutputMissing(OutputError, FileNotFoundError):
    """A file that a program wrote is no longer there."""


def output_error(problem: Exception, uri: str) -> OutputError:
    """``problem`` as an error of the output file ``uri``."""
    number = problem.errno if isinstance(problem, OSError) else None
    missing = isinstance(problem, FileNotFoundError)
    kind = OutputMissing if missing else OutputError
    if missing or number is not None:
        # An object store raises FileNotFoundError with the name alone.
        words = problem.strerror if isinstance(problem, OSError) else None
        return kind(number or errno.ENOENT, words or "No such file or directory", uri)
    return kind(f"{uri}: {problem or type(problem).__name__}")


@contextmanager
def output_errors(uri: str) -> Iterator[None]:
    """Raise what fails inside as OutputError of ``uri``; what is one already, and lack of memory, stay as they are."""
    try:
        yield
    except (OutputError, MemoryError):
        raise
    except Exception as problem:
        raise output_error(problem, uri) from problem
