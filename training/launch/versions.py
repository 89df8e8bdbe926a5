"""Which versions of what an accelerator needs are on this machine, for preflight to say.

torch_npu is built for one release of torch, and wants a CANN of its own; what is installed here may differ from what is
on the machines of the ranks, which is why it is said and not judged.
"""

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

CANN_HOME = "ASCEND_HOME_PATH"  # set by CANN's set_env.sh
INSTALLED = "ascend_*_install.info"  # has a line version=..., as torch_npu.utils.collect_env reads it


def versions(device: str) -> str:
    """Versions in words: torch, and what a device of this kind needs besides ("cpu", "cuda" or "npu")."""
    found: dict[str, str] = {"torch": torch.__version__}
    if device == "cuda":
        found["CUDA"] = torch.version.cuda or "none that this torch was built for"
    if device == "npu":
        try:
            found["torch_npu"] = version("torch_npu")
        except PackageNotFoundError:
            found["torch_npu"] = "not installed here"
        found["CANN"] = cann_version(os.environ.get(CANN_HOME))
    return ", ".join(f"{name} {each}" for name, each in found.items())


def cann_version(home: str | None) -> str:
    """The version that CANN's installer wrote below ``home``; in words where there is none."""
    if not home:
        return f"unknown, as {CANN_HOME} is not set here"
    for info in sorted(Path(home).resolve().rglob(INSTALLED)):
        if found := re.search(r"^version=(\S+)", info.read_text(errors="replace"), re.MULTILINE):
            return found[1]
    return f"unknown, as {home} has no {INSTALLED}"
