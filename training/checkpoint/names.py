"""The names of what belongs to a step, written and read in one place. Whatever else is in a folder is not touched."""

import re
from collections.abc import Iterator
from pathlib import Path

_STEP = re.compile(r"step-(\d{8,})")
_UNFINISHED = re.compile(r"\.step-\d{8,}(-old)?")


def step_name(step: int) -> str:
    """The name of the folder of what a run leaves after ``step`` finished steps, such as ``step-00000500``."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The number of steps in a name that ``step_name`` made; None for any other, such as ``step-00000500-keep``."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found and step_name(int(found[1])) == name else None


def step_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """Number and path of every folder of a step in ``folder``, which may not exist, in no order."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if (step := step_of(path.name)) is not None and path.is_dir():
            yield step, path


def hidden(path: Path, old: bool = False) -> Path:
    """Where a step's folder is while it is written or, ``old``, while it is removed."""
    return path.with_name(f".{path.name}{'-old' if old else ''}")


def unfinished(folder: Path) -> list[Path]:
    """The folders in ``folder`` that a crash left while they were written or removed."""
    return [path for path in folder.iterdir() if _UNFINISHED.fullmatch(path.name) and path.is_dir()]
