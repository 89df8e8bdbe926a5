"""Work in a process of its own, under a limit of time and of memory: what dies there costs that piece of work alone.

``call`` is for work that runs other people's files through libraries of C: a segmentation fault, an endless loop or a
file that takes all memory then ends one fork of a server (fork_server.py), and nothing else. There is one server to
each process that calls, started by its first call; threads, pool workers and Ray workers may all call.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.tables.faults import PassingFault

PRELOAD = ("tasks.curation.decode",)
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from tasks.curation.fork_server import main; main()"
)
# A fork has only the thread that forks, so the server must have no other: not of BLAS, nor of Arrow's allocator.
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class Died(RuntimeError):
    """The work passed a limit, or its process crashed; the message says which, in words for the report."""


@dataclass(frozen=True)
class Limits:
    seconds: float  # of wall time
    gib: float  # of resident memory


@dataclass(frozen=True)
class _Server:
    process: subprocess.Popen[bytes]
    control: socket.socket
    owner: int  # a process forked off the one that started the server must start its own


_server: _Server | None = None
_starting = threading.Lock()


def call(work: Callable[..., Any], arguments: dict[str, Any], limits: Limits) -> Any:
    """``work(**arguments)`` in a process of its own; ``work`` is a function of a module, and all values are JSON-able.

    Raises Died where it passed a limit or crashed, PassingFault where something else ended its process, and what
    ``work`` itself raised: OSError with its errno, MemoryError, else RuntimeError with the same words.
    """
    job = {
        "work": f"{work.__module__}:{work.__qualname__}",
        "arguments": arguments,
        "seconds": limits.seconds,
        "bytes": int(limits.gib * 2**30),
    }
    # Twice, as the server itself may have been killed, by whoever frees memory, while it waited.
    reply = _ask(job) or _ask(job)
    if reply is None:
        raise PassingFault("the server of decoding processes was ended from outside, twice")
    if "result" in reply:
        return reply["result"]
    if "raised" in reply:
        raise _raised(**reply["raised"])
    raise _end(reply["exit"], reply["limit"], limits)


def _ask(job: dict[str, Any]) -> dict[str, Any] | None:
    """The first reply to a job; None where the server is gone."""
    server = _running()
    reading, writing = os.pipe()
    try:
        try:
            socket.send_fds(server.control, [json.dumps(job).encode()], [writing])
        except (BrokenPipeError, ConnectionResetError):
            return None
        finally:
            os.close(writing)
        return _reply(reading, server)
    finally:
        os.close(reading)


def _reply(pipe: int, server: _Server) -> dict[str, Any] | None:
    waiting = b""
    while True:
        if not select.select([pipe], [], [], 1.0)[0]:
            if server.process.poll() is not None:
                return None
            continue
        block = os.read(pipe, 1 << 16)
        if not block:
            return None
        *lines, waiting = (waiting + block).split(b"\n")
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:  # an empty line, or the half that a dying process wrote
                continue
            if isinstance(found, dict):
                return found


def _raised(kind: str, errno: int | None, words: str) -> Exception:
    if errno is not None:
        return OSError(errno, words)
    return MemoryError(words) if kind == "MemoryError" else RuntimeError(words)


def _end(status: int, limit: str | None, limits: Limits) -> Exception:
    if limit == "seconds":
        return Died(f"decoding took longer than {limits.seconds:g} s")
    if limit == "bytes":
        return Died(f"decoding needed more than {limits.gib:g} GiB of memory")
    if -status in (signal.SIGKILL, signal.SIGTERM):
        return PassingFault(f"the decoder was ended from outside (signal {-status}), perhaps for want of memory")
    return Died(f"the decoder died ({f'signal {-status}' if status < 0 else f'exit status {status}'})")


def _running() -> _Server:
    """This process's server, started where there is none."""
    global _server
    with _starting:
        if _server is None or _server.owner != os.getpid() or _server.process.poll() is not None:
            _server = _started()
        return _server


def _started() -> _Server:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = [os.path.abspath(entry) for entry in sys.path]
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(path), str(theirs.fileno()), *PRELOAD],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | _ONE_THREAD,
            start_new_session=True,  # a terminal's Ctrl-C is for the parent to judge
        )
    return _Server(process, ours, os.getpid())


@atexit.register
def _stop() -> None:
    if _server is not None and _server.owner == os.getpid():
        _server.control.close()
        _server.process.wait(timeout=10)
