"""The model that generation works with: one on each device, kept from batch to batch, used by one batch at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Lock
from typing import Any

from models.text_to_video import TextToVideo, load_text_to_video


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that preflight found whole: its folder, and a hash of the files that are read."""

    folder: str
    content: str


_busy: set[str] = set()
_freed = Condition()

_models: dict[str, tuple[object, TextToVideo]] = {}
_loading = Lock()  # one checkpoint at a time passes through the machine's memory


@contextmanager
def free_device(names: Sequence[str]) -> Iterator[str]:
    """A device that no other batch of this process works on, as long as the context lasts; waits for one."""
    with _freed:
        _freed.wait_for(lambda: not _busy.issuperset(names))
        name = next(name for name in names if name not in _busy)
        _busy.add(name)
    try:
        yield name
    finally:
        with _freed:
            _busy.remove(name)
            _freed.notify_all()


def loaded(checkpoint: Checkpoint, device: str, **options: Any) -> TextToVideo:
    """The checkpoint on a device, which the caller has to itself; another one that it held is let go of first.

    ``options`` are those of ``load_text_to_video``.
    """
    wanted = (checkpoint, options)
    with _loading:
        if device not in _models or _models[device][0] != wanted:
            _models.pop(device, None)
            _models[device] = wanted, load_text_to_video(checkpoint.folder, device=device, **options)
        return _models[device][1]
