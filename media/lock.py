"""One run at a time on one output folder, on a local disk, shared storage or an object store.

On a disk the lock is ``flock`` on OUT/run.lock: it dies with its process, so that a run that was killed can be started
again at once. NFS passes flock on to its server, so it holds between machines too. An object store and some network
file systems know no such lock: there OUT/run.lock is a file that its holder rewrites every few seconds, and that counts
as left behind when it has not been for a minute.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from media.paths import fs_of, is_local

LOCK = "run.lock"
BEAT_S = 10.0
STALE_S = 60.0

# File systems on which flock does not work say so with these: some network and user-space ones.
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class InUse(ValueError):
    """An output cannot be held: another run holds it, or it cannot be written; the message says which."""


class LockLost(OSError):
    """Another run took the output, as this one had been silent too long: it must write no more."""


class Hold:
    """A lock that is held. ``check`` raises LockLost where it is not any more."""

    def __init__(self) -> None:
        self.lost: str | None = None

    def check(self) -> None:
        if self.lost:
            raise LockLost(errno.ESTALE, self.lost)


@contextmanager
def locked(root: str) -> Iterator[Hold]:
    """Hold the folder or prefix ``root`` until the body ends or this process does; a second one is refused at once.

    InUse: another process holds it, in words that say who, or it cannot be written.
    """
    uri = root.rstrip("/") + "/" + LOCK
    with _flock(uri) if is_local(root) else _beating(uri) as hold:
        yield hold


def check_free(root: str) -> None:
    """InUse if another run holds the local folder ``root``. Nothing is written, and a missing folder is free.

    Where flock does not work, only what the holder wrote within the last minute tells.
    """
    path = fs_of(root.rstrip("/") + "/" + LOCK)[1]
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        holder = _parsed(os.pread(file, 4096, 0))
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(path, holder) from None
    except OSError as problem:
        if problem.errno not in _NO_FLOCK:
            raise
    finally:
        os.close(file)
    if time.time() - float(holder.get("beat_at", 0)) < STALE_S:
        raise _refusal(path, holder)


def _me() -> dict[str, Any]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "token": uuid.uuid4().hex}


def _refusal(uri: str, holder: dict[str, Any], more: str = "") -> InUse:
    root = uri.rsplit("/", 1)[0]
    who = (
        f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}" if holder else "another run"
    )
    return InUse(f"output {root!r} is in use: {who} is writing there{more}; wait for it, or choose another output")


@contextmanager
def _flock(uri: str) -> Iterator[Hold]:
    path = fs_of(uri)[1]
    while True:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as problem:
            raise InUse(f"output {os.path.dirname(path)!r} cannot be written: {problem}") from problem
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _parsed(os.pread(file, 4096, 0))
            os.close(file)
            raise _refusal(uri, holder) from None
        except OSError as problem:
            if os.fstat(file).st_size == 0:
                os.unlink(path)
            os.close(file)
            if problem.errno not in _NO_FLOCK:
                raise
            with _beating(uri) as hold:
                yield hold
            return
        # The holder before may have removed the file between our open and our lock: then another can have a new one.
        if _same_file(file, path):
            break
        os.close(file)
    _held.add(file)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_me()).encode(), 0)
        yield Hold()
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        _held.discard(file)
        os.close(file)


def _same_file(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


# A child that is forked has a copy of the descriptor, and would keep the lock when the run is killed and it lives on.
_held: set[int] = set()


def _let_go() -> None:
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def _beating(uri: str) -> Iterator[Hold]:
    fs, path = fs_of(uri)
    me = _me()
    _take(fs, path, uri, me)
    hold, ended = Hold(), threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(BEAT_S):
            count += 1
            try:
                if _parsed(fs.cat_file(path)).get("token", me["token"]) != me["token"]:
                    raise FileNotFoundError
                fs.pipe_file(path, _text(me, count))
            except FileNotFoundError:
                hold.lost = f"{uri} is held by another run now"
                return
            except Exception:  # a store that is away for a moment: the next beat tells
                continue

    thread = threading.Thread(target=beat, name="run.lock", daemon=True)
    thread.start()
    try:
        yield hold
    finally:
        ended.set()
        thread.join()
        if not hold.lost:
            with suppress(FileNotFoundError):
                fs.rm_file(path)


def _take(fs: Any, path: str, uri: str, me: dict[str, Any]) -> None:
    """Create the lock object; InUse where a run holds it."""
    try:
        fs.pipe_file(path, _text(me, 0), mode="create")
        return
    except FileExistsError:
        holder = _read(fs, path)
    age = time.time() - float(holder.get("beat_at", 0))
    if age < STALE_S:
        left = min(STALE_S, STALE_S - age)
        raise _refusal(uri, holder, f" (if it was killed, the output is free in {left:.0f} s)")
    # It looks left behind; but clocks differ. A holder that lives writes again within a beat.
    time.sleep(1.5 * BEAT_S)
    if _read(fs, path) != holder:
        raise _refusal(uri, _read(fs, path), ", though its clock or ours is wrong")
    with suppress(FileNotFoundError):
        fs.rm_file(path)
    try:
        fs.pipe_file(path, _text(me, 0), mode="create")
    except FileExistsError:
        raise _refusal(uri, _read(fs, path)) from None


def _text(me: dict[str, Any], count: int) -> bytes:
    return json.dumps(me | {"beat": count, "beat_at": time.time()}).encode()


def _read(fs: Any, path: str) -> dict[str, Any]:
    try:
        return _parsed(fs.cat_file(path))
    except FileNotFoundError:
        return {}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
