"""torchrun as our child: one signal stops it, and it ends in time where nobody reads what it prints."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from training.launch.torchrun import StopOnce

ROOT = Path(__file__).parents[3]

# The process id of the parent to assume is in the first argument; its standard output is a pipe that nobody reads.
ORPHAN = """
import os, signal, sys
from torch.distributed.elastic.multiprocessing.api import SignalException
from training.launch.torchrun import StopOnce

signal.signal(signal.SIGTERM, StopOnce(int(sys.argv[1])))
for _ in range(2):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SignalException:
        pass
print("a line of a rank", flush=True)
"""

EXCEPTION = """
import logging, sys
from training.launch.torchrun import plain_messages

plain_messages()
log = logging.getLogger("torch.distributed.elastic.multiprocessing.tail_log")
try:
    raise BrokenPipeError(32, "Broken pipe")
except OSError:
    log.exception("error in log tailor")
sys.exit("torch._dynamo" in sys.modules)
"""


def test_only_the_first_signal_stops_the_ranks():
    stop = StopOnce(os.getppid())
    with pytest.raises(SignalException) as raised:
        stop(signal.SIGTERM, None)
    assert raised.value.sigval == signal.SIGTERM
    stop(signal.SIGTERM, None)


@pytest.mark.parametrize("gone", [True, False])
def test_a_rank_s_lines_go_nowhere_once_the_parent_has_gone(gone):
    read, write = os.pipe()
    os.close(read)
    parent = 1 if gone else os.getpid()
    orphan = subprocess.run([sys.executable, "-c", ORPHAN, str(parent)], cwd=ROOT, stdout=write, stderr=write)
    os.close(write)
    assert (orphan.returncode == 0) == gone  # else it fails at the closed pipe, as any process would


def test_an_exception_in_torch_s_log_imports_no_compiler():
    logged = subprocess.run([sys.executable, "-c", EXCEPTION], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert logged.returncode == 0, logged.stderr
    assert "ERROR" in logged.stderr and logged.stderr.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")
