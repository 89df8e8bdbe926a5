"""Slots of accelerators: as many tasks at once as there are devices, over all threads and processes of a machine.

Networks of several tasks on one device only crowd each other out of its memory. A slot is named after the device itself
and not after its place among those that a process sees: workers to which Ray or a batch system has shown one device
each all count it as number 0, and yet need not take turns.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

POLL_S = 0.05
# What shows a process some of a machine's devices, by the kind of device as torch calls it; the first that is set.
VISIBLE = {
    "cuda": ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    "npu": ("ASCEND_RT_VISIBLE_DEVICES",),
    "xpu": ("ZE_AFFINITY_MASK",),
}


def names_of(kind: str, count: int, environment: Mapping[str, str]) -> list[str]:
    """The names, on this machine, of the ``count`` devices of a kind that a process sees, in its order.

    A name is the device's entry in the variable that shows it to the process (a number or a UUID, whichever stands
    there), or its number where all are shown.
    """
    shown = next((environment[name] for name in VISIBLE.get(kind, ()) if name in environment), "")
    entries = [entry.strip() for entry in shown.split(",") if entry.strip()]
    names = entries[:count] if len(entries) >= count else [str(number) for number in range(count)]
    return [f"{kind}-{name.replace('/', '_')}" for name in names]


def visible_devices() -> list[str]:
    """The names of the accelerators that this process sees; where there is none the CPU stands for one."""
    import torch  # takes seconds, and lite scorers never need it

    if not torch.accelerator.is_available() or not torch.accelerator.device_count():
        return ["cpu"]
    device = torch.accelerator.current_accelerator()
    assert device is not None
    return names_of(device.type, torch.accelerator.device_count(), os.environ)


@contextmanager
def device_slot(device: Literal["cpu", "accelerator"]) -> Iterator[int | None]:
    """Hold one of this process's devices while the context lasts; gives its number among them. None, and nothing is
    held, for the CPU.

    Until the context ends it is torch's current device in this thread, so that a network that says no more than
    "cuda" or "npu" is loaded and run there.
    """
    if device == "cpu":
        yield None
        return
    with slot(visible_devices()) as number, _current(number):
        yield number


@contextmanager
def slot(names: Sequence[str]) -> Iterator[int]:
    """Hold the first of the named slots of this machine that is free, once there is one; gives its place in ``names``.

    A slot is a locked file, which the system releases when its holder dies.
    """
    folder = Path(tempfile.gettempdir()) / f"contentv-devices-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    while True:
        for number, name in enumerate(names):
            with (folder / f"{name}.lock").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return
        time.sleep(POLL_S)


@contextmanager
def _current(number: int) -> Iterator[None]:
    """Make a device torch's current one in this thread. Nothing where the CPU stands for it."""
    import torch

    if not torch.accelerator.is_available():
        yield
        return
    before = torch.accelerator.current_device_index()
    torch.accelerator.set_device_index(number)
    try:
        yield
    finally:
        torch.accelerator.set_device_index(before)


def out_of_memory(problem: BaseException) -> MemoryError | None:
    """The problem as a MemoryError, where a device or the machine had too little memory; None: it is another."""
    if isinstance(problem, MemoryError) or "OutOfMemory" in type(problem).__name__:
        return MemoryError(f"one sample does not fit the device's memory: {problem}")
    return None
