"""The peak of memory that a rank's steps take, measured, beside what the plan says of the same micro-batches.

On an accelerator it is what PyTorch's allocator had given out at most. On a CPU it is the largest resident set of the
process: what the process holds besides counts to both, and what the C library keeps of freed memory to the measured one
alone.
"""

import logging
import resource
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from training.memory.plan import GIB
from training.memory.step import Setup, Tokens, step_bytes

OVER_PLAN = 1.1  # measured over planned, from where a run is warned

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_log = logging.getLogger(__name__)


class PeakMemory:
    """The measured and the planned peak of one rank since the last ``reset``.

    Args:
        other_bytes: what is held besides what the steps take, see ``held_besides``.
    """

    def __init__(self, setup: Setup, other_bytes: int, device: torch.device) -> None:
        self._setup, self._other, self._device = setup, other_bytes, device
        self._step_bytes = lru_cache(maxsize=None)(step_bytes)
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """Begin an interval. What was taken before it, for a checkpoint or sample videos say, is forgotten."""
        self._planned = self._step_bytes(self._setup, Tokens(0, 0, 0))
        reset_peak(self._device)

    def micro_batch(self, samples: int, video_tokens: int, text_tokens: int) -> None:
        """Note that the interval has a micro-batch of so many samples, of so many tokens each."""
        planned = self._step_bytes(self._setup, Tokens(samples, video_tokens, text_tokens))
        self._planned = max(self._planned, planned)

    @property
    def planned_bytes(self) -> int:
        """What the plan says of the costliest micro-batch of the interval, and all that is held besides."""
        return self._planned + self._other

    def line(self) -> dict[str, float]:
        """The interval's numbers, in 10^9 bytes, and their ratio; the next interval begins.

        A peak that is OVER_PLAN of what was planned is warned of, once.
        """
        measured, planned = peak_bytes(self._device), self.planned_bytes
        if measured > OVER_PLAN * planned and not self._warned:
            self._warned = True
            _log.warning(
                "the steps take %.2f GiB of %s, and the plan says %.2f: batches that the plan has for it may not fit",
                *(measured / GIB, self._device, planned / GIB),
            )
        self.reset()
        return {"memory_gb": measured / 1e9, "memory_planned_gb": planned / 1e9, "memory_ratio": measured / planned}


def peak_bytes(device: torch.device) -> int:
    """The most bytes that were held at once since ``reset_peak``; see above of what."""
    if device.type != "cpu":
        return int(getattr(torch, device.type).max_memory_allocated(device))
    return _status("VmHWM") if _STATUS.exists() else _largest_ever()


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far. Only Linux can for a process: elsewhere, and where /proc may not be written, it stays."""
    if device.type != "cpu":
        getattr(torch, device.type).reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        _CLEAR_REFS.write_text("5")


def held_bytes(device: torch.device) -> int:
    """What ``peak_bytes`` counts of now. On an accelerator nothing before the first tensor."""
    if device.type != "cpu":
        return int(getattr(torch, device.type).memory_allocated(device))
    return _status("VmRSS") if _STATUS.exists() else _largest_ever()


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{_STATUS} has no {field}")


def _largest_ever() -> int:
    kilobytes = sys.platform != "darwin"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if kilobytes else 1)
