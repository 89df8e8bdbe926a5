"""A small server that runs each piece of work in a fork of itself, and ends it where it passes a limit (child side).

It imports the libraries of decoding once, has a single thread and no Prefect, so that a fork costs milliseconds and is
safe. ``multiprocessing`` has a fork server as well, which would not do here: its children run the main program's file
again, which imports Prefect; a daemonic process may not have them; and nothing in it watches time and memory.

The parent sends a job as one message with one file descriptor, a pipe that takes lines of JSON: ``{"result": ...}`` or
``{"raised": ...}`` from the fork; then, from the server, ``{"exit": status, "limit": ...}`` when the fork is gone. A
fork never outlives the server (PR_SET_PDEATHSIG), nor the server its parent: it ends when the socket is closed.
"""

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from tasks.tables.faults import in_words

LOOK_S = 0.05  # how often memory and time are looked at
MESSAGE_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1
_PAGE = resource.getpagesize()


@dataclass
class _Fork:
    pipe: int
    ends_s: float
    bytes_max: int
    limit: str | None = None  # the one that it passed


def serve(control: socket.socket, preload: Sequence[str]) -> None:
    """Run the jobs that come over ``control`` (SOCK_SEQPACKET) until the other end is closed."""
    for module in preload:
        importlib.import_module(module)
    parent = os.getppid()
    forks: dict[int, _Fork] = {}
    while os.getppid() == parent:
        ready, _, _ = select.select([control], [], [], LOOK_S if forks else 1.0)
        if ready:
            message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 1)
            if not message:
                break
            _start(json.loads(message), descriptors[0], forks, control)
        _reap(forks)
        _watch(forks)
    for pid in forks:
        os.kill(pid, signal.SIGKILL)


def _start(job: dict[str, Any], pipe: int, forks: dict[int, _Fork], control: socket.socket) -> None:
    server = os.getpid()
    try:
        pid = os.fork()
    except OSError as problem:  # the machine has no memory or no process left
        _send(pipe, {"raised": {"kind": "OSError", "errno": problem.errno, "words": str(problem)}})
        os.close(pipe)
        return
    if pid == 0:
        control.close()
        _work(job, pipe, server)
    forks[pid] = _Fork(pipe, time.monotonic() + job["seconds"], job["bytes"])


def _work(job: dict[str, Any], pipe: int, server: int) -> NoReturn:
    """Do the job in this fork and leave, without the clean-up that belongs to the server."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        module, _, name = job["work"].partition(":")
        reply = {"result": getattr(importlib.import_module(module), name)(**job["arguments"])}
    except BaseException as problem:
        words = in_words(problem)
        kind = next(kind.__name__ for kind in type(problem).__mro__ if kind.__module__ == "builtins")
        reply = {"raised": {"kind": kind, "errno": getattr(problem, "errno", None), "words": words}}
    _send(pipe, reply)
    os._exit(0)


def _send(pipe: int, reply: dict[str, Any]) -> None:
    # It begins with a newline, as a fork may have died in the middle of a line.
    data = f"\n{json.dumps(reply)}\n".encode()
    with suppress(BrokenPipeError):
        while data:
            data = data[os.write(pipe, data) :]


def _reap(forks: dict[int, _Fork]) -> None:
    for pid in list(forks):
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            fork = forks.pop(pid)
            _send(fork.pipe, {"exit": os.waitstatus_to_exitcode(status), "limit": fork.limit})
            os.close(fork.pipe)


def _watch(forks: dict[int, _Fork]) -> None:
    """Kill the forks that passed a limit.

    Memory is resident memory, read every LOOK_S, and no limit of the kernel's: where RLIMIT_DATA or RLIMIT_AS refuses
    memory, each library fails in its own way and words, and reserved memory that is never touched counts. What can be
    taken in LOOK_S comes on top of the limit, some 0.1 GiB.
    """
    now_s = time.monotonic()
    for pid, fork in forks.items():
        if fork.limit is None:
            fork.limit = "seconds" if now_s > fork.ends_s else "bytes" if resident(pid) > fork.bytes_max else None
            if fork.limit:
                os.kill(pid, signal.SIGKILL)


def resident(pid: int) -> int:
    """Bytes of memory that a process has and shares with no file."""
    with open(f"/proc/{pid}/statm") as file:
        _, pages, shared, *_ = file.read().split()
    return (int(pages) - int(shared)) * _PAGE


def main() -> None:
    descriptor, *preload = sys.argv[1:]
    with socket.socket(fileno=int(descriptor)) as control:
        serve(control, preload)
