"""``python -m training.launch.attached MODULE [ARGUMENTS]``: a rank that does not outlive its launcher.

torchrun starts every rank in a session of its own, so a torchrun that dies of SIGKILL leaves ranks that hold their
devices for ever. Here the kernel ends them (Linux; elsewhere a rank runs on until its next collective fails).
"""

import ctypes
import os
import runpy
import signal
import sys
from io import TextIOWrapper

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PARENT = "CONTENTV_PARENT"  # process id of who is to outlive this process


def end_with_parent(how: signal.Signals) -> None:
    """Have the kernel send ``how`` to this process when its parent ends; children attach themselves to this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, how)
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            sys.exit(f"the process {os.environ[PARENT]} that started this one has ended")
    os.environ[PARENT] = str(os.getpid())


def main() -> None:
    end_with_parent(signal.SIGKILL)
    for stream in (sys.stdout, sys.stderr):
        # Whole lines, although torchrun starts Python with -u: it puts the rank before what it finds at a time.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
