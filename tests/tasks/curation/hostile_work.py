"""Work that does what hostile files make decoders do. It runs in processes of its own (tasks/curation/isolated.py)."""

import ctypes
import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# The same arguments as ``decode``, so that each can stand in its place.


def waits(path: str, folder: str, samples_per_s: float) -> Row:
    time.sleep(60)
    return {}


def takes_half_a_second(path: str, folder: str, samples_per_s: float) -> Row:
    time.sleep(0.5)
    return {"error": "it came to its end"}


def takes_memory(path: str, folder: str, samples_per_s: float) -> Row:
    taken = []
    while True:
        taken.append(b"\1" * (8 << 20))
        time.sleep(0.002)


def reads_no_memory(path: str, folder: str, samples_per_s: float) -> Row:
    return {"error": ctypes.string_at(0).decode()}


def leaves(path: str, folder: str, samples_per_s: float) -> Row:
    os._exit(3)


def fills_the_disk(path: str, folder: str, samples_per_s: float) -> Row:
    raise OSError(errno.ENOSPC, "No space left on device", f"{folder}/samples.parquet")


def breaks(path: str, folder: str, samples_per_s: float) -> Row:
    raise KeyError(f"a bug met {path}")


def is_killed(path: str, folder: str, samples_per_s: float) -> Row:
    os.kill(os.getpid(), 9)
    return {}


# Work with arguments of its own.


def loop(until: str) -> None:
    """Write the process id to the file ``until``, and never end."""
    Path(until).write_text(str(os.getpid()))
    while True:
        pass


def double(number: int) -> int:
    return 2 * number


def prefect_and_threads() -> tuple[bool, list[str]]:
    """Whether this process knows Prefect, and its threads."""
    names = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
    return "prefect" in sys.modules, names
