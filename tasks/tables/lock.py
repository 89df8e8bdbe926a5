"""One run at a time on one output of curation or generation: the lock of ``media.lock``, with the owner's mark."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from media.lock import LOCK, Hold, InUse, LockLost, locked
from tasks.tables.checks import PreflightError
from tasks.tables.owner import check_owner, claim

__all__ = ["LOCK", "Hold", "LockLost", "holding"]


@contextmanager
def holding(root: str, kind: str = "curation") -> Iterator[Hold]:
    """Hold ``root`` for a run of this kind, with its mark in it; a second run is refused at once.

    Raises PreflightError where another run holds it, in words that say who, and where ``check_owner`` does.
    """
    check_owner(root, kind)
    with ExitStack() as stack:
        try:
            hold = stack.enter_context(locked(root))
        except InUse as problem:
            raise PreflightError(str(problem)) from problem
        claim(root, kind)
        yield hold
