"""Which rank failed first, and why: the other ranks' errors are mostly that they lost it (report, section 7.1)."""

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINES = 12  # of a traceback, or of what a rank printed last
NEVER_AGAIN = 2  # exit status of a rank that would fail again

# What a rank raises when another one is gone. An error of this kind is the cause only if there is no other.
LOST_A_PEER = re.compile(
    r"gloo|nccl|hccl|connection (was )?(closed|reset|refused|likely)|socket|broken pipe|tcpstore|barrier|watchdog|peer",
    re.IGNORECASE,
)
OF_DISTRIBUTED = {"DistBackendError", "DistNetworkError", "DistStoreError", "DistError", "RuntimeError"}


class RankFailed(RuntimeError):
    """A rank failed: the message starts with its number, its error's kind and its words.

    Attributes:
        rank: the number, or None where no rank can be blamed.
        retry: whether it may go better from the last checkpoint.
    """

    def __init__(self, message: str, rank: int | None = None, retry: bool = True) -> None:
        super().__init__(message)
        self.rank, self.retry = rank, retry

    @property
    def headline(self) -> str:
        return str(self).partition("\n")[0]


@dataclass(frozen=True)
class Failure:
    """How a rank failed; ``time`` is unix, in s; ``lost``: for another, 1 by its words, 2 when stopped."""

    rank: int
    words: str
    time: float
    detail: str = ""
    retry: bool = True
    lost: int = 0


def reported(errors: Path) -> list[Failure]:
    """What ranks left in ``errors`` (rank-*.json)."""
    return [_of_file(json.loads(path.read_text())) for path in sorted(errors.glob("rank-*.json"))]


def ended(rank: int, status: int, time: float, last_words: Sequence[str] = ()) -> Failure:
    """The failure of a rank by its exit status, or the negative number of a signal, and what it printed last."""
    words = f"ended with exit status {status}"
    if status < 0:
        words = f"killed by {signal.Signals(-status).name}"
    if status == -signal.SIGKILL:
        words += ", as the kernel does where memory is short"
    lost = 0
    if status == -signal.SIGTERM:  # torchrun sends it to those that are left
        lost = 2
    elif status == -signal.SIGABRT and any(LOST_A_PEER.search(line) for line in last_words):  # by NCCL's watchdog
        lost = 1
    return Failure(rank, words, time, "\n".join(last_words), status != NEVER_AGAIN, lost)


def first_failure(reports: Sequence[Failure], silent: Sequence[Failure] = ()) -> RankFailed | None:
    """The failure that was first, of those that ranks reported, and of ranks that ended without a report.

    That a rank lost another counts only if there is nothing else. None where no rank failed.
    """
    spoke = {failure.rank for failure in reports}
    failures = [*reports, *(failure for failure in silent if failure.rank not in spoke)]
    if not failures:
        return None
    first = min(failures, key=lambda failure: (failure.lost, failure.time))
    detail = f"\n\n{first.detail}" if first.detail else ""
    return RankFailed(f"rank {first.rank}: {first.words}{detail}", first.rank, first.retry)


def _of_file(error: dict[str, Any]) -> Failure:
    kind, message = error["kind"], error["message"].strip()
    return Failure(
        rank=error["rank"],
        words=f"{kind}: {message}" if message else kind,
        time=error["time"],
        detail="\n".join(error["traceback"].strip().splitlines()[-LINES:]),
        retry=error["retry"],
        lost=int(kind in OF_DISTRIBUTED and bool(LOST_A_PEER.search(message))),
    )
