"""The batch buffer of a data rank: a process that fetches ahead of training (report, section 7.2).

Batches lie as Arrow files in a folder of memory or of a local disk, up to a bound in bytes, and the trainer maps them:
it never waits for a network, and no tensor is copied between the two processes. A step's number is all that names a
batch, so ranks that are at the same step have batches of one step, and a run that is resumed starts at any.

The folder goes away with whichever of the two processes lives longer: the buffer process sees its trainer's death as
the end of a pipe. If both are killed at once, the next buffer in that place removes what they left.
"""

import atexit
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import traceback
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from training.data.clips import ClipError
from training.data.manifest import ManifestError, open_manifest
from training.data.plan import BatchPlan, Job
from training.encode import wire
from training.encode.batch_file import file_bytes, read_file, write_file
from training.encode.buffer_folder import bound, hold, new_folder
from training.encode.client import EncodeClient
from training.encode.encoder import Encoded
from training.encode.servers import NoServer, WrongToken, servers_of
from training.run import EncodeConfig

AT_ONCE = 2  # batches that are fetched at the same time, so that a lone rank has more than one server work for it
LOOKS_S = 1.0  # seconds between two looks whether the trainer is still the parent
LEAVES_S = 10.0  # seconds that a process may take to end after its pipe

# What a buffer process may raise, and its trainer raises again as the same.
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (NoServer, WrongToken, ManifestError, ClipError, ValueError, OSError, FileNotFoundError, IndexError)
}


class BufferDied(RuntimeError):
    """The buffer process ended without a word: killed, perhaps for want of memory."""


@dataclass(frozen=True)
class Share:
    """The batches of one data rank, and who encodes them.

    Attributes:
        manifests: as the job's, opened again by the buffer process.
        encoder: fingerprint of the weights that all servers must have.
    """

    manifests: tuple[str, ...]
    job: Job
    encode: EncodeConfig
    encoder: str
    data_rank: int = 0
    data_ranks: int = 1


class BufferedFeed:
    """The feed of a run with encode servers: batches of one data rank, fetched ahead by a process of their own.

    Args:
        first: step that is asked for first; another one is fetched anew.

    Raises:
        OSError: where the buffer is to be there is less room than its bound.
    """

    def __init__(self, share: Share, first: int = 0) -> None:
        self._share = share
        self._process: _Process | None = _Process(share, first)
        self._next = first
        self._in_use: int | None = None
        atexit.register(self.close)  # before multiprocessing's own, which would wait for a process that waits for us

    def batch(self, step: int) -> list[Encoded]:
        """This data rank's samples of a step, in the plan's order; waits until they are there.

        Their memory is the batch's file, which is deleted: it is free when the tensors are, and counts in the bound
        until the next call.

        Raises:
            NoServer, WrongToken, ManifestError, ...: what the buffer process failed of, in its words.
            BufferDied: it was killed. After any of these the next call starts another.
        """
        if self._process is not None and step != self._next:
            self.close()
        if self._process is None:
            self._process = _Process(self._share, step)
            atexit.register(self.close)
        elif self._in_use is not None:
            self._process.free(self._in_use)
        self._in_use = None
        try:
            self._process.wait_for(step)
            _, batch = read_file(self._process.folder / file_name(step))
        except BaseException:
            self.close()
            raise
        (self._process.folder / file_name(step)).unlink()
        self._in_use, self._next = step, step + 1
        return batch

    def close(self) -> None:
        """End the buffer process and remove its folder."""
        if self._process is not None:
            self._process.end()
            self._process = None
        atexit.unregister(self.close)


class _Process:
    """A buffer process and its folder, as its trainer sees them. Messages are JSON."""

    def __init__(self, share: Share, first: int) -> None:
        self._share = share
        self.folder, self._lock = new_folder(share.encode)
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        arguments = share, first, self.folder, os.getpid(), theirs
        self._process = spawn.Process(target=_run, args=arguments, name=f"buffer of {share.data_rank}", daemon=True)
        try:
            self._process.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            raise
        theirs.close()  # else its death would not be the end of the pipe

    def wait_for(self, step: int) -> None:
        """Until the step's file is there. Raises what the process failed of."""
        try:
            message = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join(LEAVES_S)
            raise BufferDied(
                f"the buffer process of data rank {self._share.data_rank} ended before step {step} with status "
                f"{self._process.exitcode}; if it was killed (-9), perhaps for want of memory"
            ) from None
        if "failed" in message:
            kind, words = message["failed"], message["words"]
            error = _KINDS[kind](words) if kind in _KINDS else RuntimeError(f"{kind}: {words}")
            error.add_note(f"in the buffer process of data rank {self._share.data_rank}:\n{message['traceback']}")
            raise error
        assert message == {"ready": step}, message

    def free(self, step: int) -> None:
        """Tell that the step's batch is no longer in use."""
        with contextlib.suppress(OSError):  # it died: waiting for the next batch will say so
            self._pipe.send_bytes(json.dumps({"free": step}).encode())

    def end(self) -> None:
        """Nothing that the process has is worth waiting for."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def file_name(step: int) -> str:
    return f"step-{step:08d}.arrow"


class _Room:
    """The bytes of a folder: batches wait until there is room, and one alone always has."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sizes: dict[int, int] = {}
        self._changed = threading.Condition()

    def take(self, step: int, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._sizes or sum(self._sizes.values()) + size <= self._most)
            self._sizes[step] = size

    def free(self, step: int) -> None:
        with self._changed:
            del self._sizes[step]
            self._changed.notify()


def _run(share: Share, first: int, folder: Path, parent: int, pipe: Connection) -> None:
    """The buffer process: fetches from step ``first`` to the last, and stays until its trainer ends it or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also sent to whole groups: the trainer says when it is over
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    room, writing = _Room(bound(share.encode)), threading.Lock()
    watch = threading.Thread(target=_watch, args=(pipe, parent, folder, room, writing))
    watch.start()
    try:
        hold(folder)
        _fetch_ahead(share, first, folder, room, writing, pipe)
    except Exception as problem:
        failed = {"failed": type(problem).__name__, "words": str(problem), "traceback": traceback.format_exc()}
        with contextlib.suppress(OSError):
            pipe.send_bytes(json.dumps(failed).encode())
    watch.join()


def _watch(pipe: Connection, parent: int, folder: Path, room: _Room, writing: threading.Lock) -> None:
    """Hear which batches are no longer in use; when the trainer is gone, remove the folder and end this process."""
    with contextlib.suppress(EOFError, OSError):
        while os.getppid() == parent:  # a child that the trainer forked would keep the pipe open
            if pipe.poll(LOOKS_S):
                room.free(json.loads(pipe.recv_bytes())["free"])
    with writing:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


def _fetch_ahead(
    share: Share, first: int, folder: Path, room: _Room, writing: threading.Lock, pipe: Connection
) -> None:
    plan, encode = BatchPlan(open_manifest(share.manifests), share.job), share.encode
    client = EncodeClient(servers_of(encode), plan, share.encoder, patience_s=encode.patience_s)
    fetching: deque[Future[list[Encoded]]] = deque()
    upcoming = iter(range(first, plan.steps))
    threads = ThreadPoolExecutor(AT_ONCE)  # never waited for: this process ends whatever they do
    for step in range(first, plan.steps):
        for later in islice(upcoming, AT_ONCE - len(fetching)):
            fetching.append(threads.submit(client.fetch, later, share.data_rank, share.data_ranks))
        batch = fetching.popleft().result()
        stamp = wire.Stamp(share.encoder, wire.fingerprint(share.job), step, share.data_rank, share.data_ranks)
        records = [wire.to_record(encoded, stamp) for encoded in batch]
        room.take(step, file_bytes(records))
        with writing:
            write_file(folder / file_name(step), records)
        pipe.send_bytes(json.dumps({"ready": step}).encode())
    raise IndexError(
        f"recipe {share.job.recipe.name} has {plan.steps} steps from 0, and a batch after them was asked for"
    )
