"""A clip as scoring sees it: its row, and its pictures from the frame store of its source."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from threading import Lock
from types import TracebackType

from tasks.tables import storage
from tasks.tables.crop import Box, crop_of, cut_out
from tasks.tables.frame_store import Frame, FramePair, FrameStore, open_frames
from tasks.tables.picture import Image
from tasks.tables.step import Row


@dataclass(frozen=True)
class Clip:
    """A clip's row and the frame store of its source."""

    row: Row
    store: FrameStore

    @property
    def crop(self) -> Box:
        return crop_of(self.row)

    @property
    def span(self) -> tuple[float, float]:
        """Start and end in seconds; an image, which has no duration, spans its only frame."""
        return self.row["start_s"], self.row["end_s"] if self.row["duration_s"] else inf

    def frames(self, limit: int | None = None, cropped: bool = True) -> list[Frame]:
        """Sampled frames inside the clip, RGB uint8, at most ``limit``, evenly spread."""
        found = self.store.frames(*self.span, limit)
        return [Frame(f.time_s, self._seen(f.image)) for f in found] if cropped else found

    def pairs(self, limit: int | None = None, cropped: bool = True) -> list[FramePair]:
        """Frame pairs inside the clip, for optical flow, at most ``limit``, evenly spread."""
        found = self.store.pairs(*self.span, limit)
        if not cropped:
            return found
        return [FramePair(p.time_s, p.gap_s, self._seen(p.first), self._seen(p.second)) for p in found]

    def _seen(self, image: Image) -> Image:
        return cut_out(image, self.crop, self.row["width"], self.row["height"])


def is_live(row: Row) -> bool:
    """Whether a row is a clip still worth measuring: no error, no duplicate, not too short."""
    return row["clip_id"] is not None and not row["rejected_by"]


def by_source(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows grouped by frame store, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["frames_uri"], []).append(row)
    return list(groups.values())


@contextmanager
def frames_of(root: str, row: Row) -> Iterator[FrameStore]:
    """The frame store of a row's source. ``frames_uri`` is relative to OUT, so that OUT can be moved.

    OutputMissing where it was deleted, with what brings it back: that is no error of the clip.
    """
    uri = storage.join(root, row["frames_uri"], "samples.parquet")
    if not storage.exists(uri):
        remedy = (
            f"to decode the sources again, remove {storage.join(root, 'steps', 'scan')} and {uri.rsplit('/', 1)[0]}"
        )
        raise storage.OutputMissing(f"frame store {uri} is gone; {remedy}")
    with open_frames(uri) as store:
        yield store


class SharedFrames:
    """The frame store of a row's source for several threads: opened once, by the first that asks for it, and closed by
    the last of ``users``, or at the end of the context."""

    def __init__(self, root: str, row: Row, users: int = 0) -> None:
        self._root, self._row, self._users = root, row, users
        self._open: FrameStore | None = None
        self._stack = ExitStack()
        self._lock = Lock()

    @property
    def store(self) -> FrameStore:
        with self._lock:
            if self._open is None:
                self._open = self._stack.enter_context(frames_of(self._root, self._row))
            return self._open

    @contextmanager
    def used(self) -> Iterator[None]:
        """The time for which one of the users needs the store."""
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._stack.close()
                    self._open = None  # with the pictures that it holds: many sources are waited for in one context

    def __enter__(self) -> "SharedFrames":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
