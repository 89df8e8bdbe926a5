"""Slots of accelerators: as many tasks at once as there are devices, over all threads and processes of a machine.

Networks of several tasks on one device only crowd each other out of its memory. On a Ray cluster, Ray's own resources
do the same between machines.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

POLL_S = 0.05


def devices() -> int:
    """Accelerators that this process sees; 1 where there is none, as then the CPU stands for one."""
    import torch  # takes seconds, and lite scorers never need it

    return max(1, torch.accelerator.device_count() if torch.accelerator.is_available() else 1)


@contextmanager
def device_slot(device: Literal["cpu", "accelerator"], slots: int | None = None) -> Iterator[int | None]:
    """Hold one of the machine's device slots while the context lasts; gives its number. Nothing for the CPU.

    A slot is a locked file, which the system releases when its holder dies.
    """
    if device == "cpu":
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f"contentv-devices-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    count = devices() if slots is None else slots
    while True:
        for number in range(count):
            with (folder / f"{number}.lock").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return
        time.sleep(POLL_S)


def out_of_memory(problem: BaseException) -> MemoryError | None:
    """The problem as a MemoryError, where a device or the machine had too little memory; None: it is another."""
    if isinstance(problem, MemoryError) or "OutOfMemory" in type(problem).__name__:
        return MemoryError(f"one sample does not fit the device's memory: {problem}")
    return None
