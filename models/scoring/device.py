"""Where networks that judge run, and in which number format: decided here, and nowhere else.

``torch.accelerator`` knows of NPUs, GPUs and all else alike, so nothing asks what kind it is. Only what torch 2.7 has
is used: later additions, such as its memory statistics, are not there on an NPU of that release.
"""

from typing import Literal

import torch

DtypeName = Literal["float32", "bfloat16", "float16"]


def current_device() -> torch.device:
    """The accelerator that is current in this thread, with its number; the CPU where there is none.

    A build for accelerators names its kind also on a machine that has none (torch 2.7), so availability comes first.
    """
    if not torch.accelerator.is_available() or not torch.accelerator.device_count():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, torch.accelerator.current_device_index())


def dtype_for(name: DtypeName, device: torch.device) -> torch.dtype:
    """The number format of a network's weights. It is a setting and not chosen by device, as scores of one run must not
    depend on where it ran.

    ValueError: float16 on a CPU, where sums overflow and kernels are missing.
    """
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"networks run in float32, bfloat16 or float16, not in {name}")
    if dtype == torch.float16 and device.type == "cpu":
        raise ValueError("float16 is for accelerators: on a CPU choose float32 or bfloat16")
    return dtype


def wait_for(device: torch.device) -> None:
    """Return when all that was given to the device is done. At once on the CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
