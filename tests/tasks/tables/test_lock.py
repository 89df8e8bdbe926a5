import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fsspec import filesystem

from media import lock
from media.paths import fs_of
from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tasks.tables.lock import LOCK, LockLost, holding
from tasks.tables.owner import claim, read_mark

HOLD = """
import os, sys, time
from tasks.tables.lock import holding
with holding(sys.argv[1]):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(root: str, how: str = "") -> subprocess.Popen:
    """A process that holds ``root`` for a minute; with "fork" it has a child that lives on."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, root, how], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(params=["memory", "s3"])
def store_root(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    return f"{request.getfixturevalue('s3')}/out" if request.param == "s3" else f"memory://lock-{tmp_path.name}"


def test_a_second_process_is_refused_and_told_who_holds_the_output(tmp_path):
    process = holder(str(tmp_path))
    try:
        words = rf"in use: process {process.pid} on {re.escape(socket.gethostname())} since 20"
        with pytest.raises(PreflightError, match=words), holding(str(tmp_path)):
            pass
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", ["", "fork"])
def test_a_run_that_was_killed_leaves_the_output_free_at_once(tmp_path, how):
    process = holder(str(tmp_path), how)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        with holding(str(tmp_path)):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    finally:
        os.killpg(process.pid, signal.SIGKILL) if how else None


def test_a_second_run_of_the_same_process_is_refused(tmp_path):
    with holding(str(tmp_path)):
        with pytest.raises(PreflightError, match="in use"), holding(str(tmp_path)):
            pass
        with pytest.raises(PreflightError, match="in use"), holding(str(tmp_path)):
            pass


def test_the_output_has_its_mark_while_it_is_held_and_no_lock_afterwards(tmp_path):
    root = str(tmp_path / "new" / "out a::b")
    with holding(root):
        assert read_mark(root)["kind"] == "curation"
    assert not Path(root, LOCK).exists()
    with holding(root):
        pass


def test_an_output_of_somebody_else_is_not_touched(tmp_path):
    claim(str(tmp_path), "generation")
    with pytest.raises(PreflightError, match="generation"), holding(str(tmp_path)):
        pass
    assert not (tmp_path / LOCK).exists()


def test_a_place_where_no_folder_can_be_is_refused_in_words(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PreflightError, match="cannot be written"), holding(str(tmp_path / "file" / "out")):
        pass


def test_a_store_is_held_by_one_run_at_a_time(store_root):
    with holding(store_root) as hold:
        time.sleep(1.5)  # longer than a lock lasts that nobody renews
        with pytest.raises(PreflightError, match=rf"process {os.getpid()} .* free in [01] s"), holding(store_root):
            pass
        hold.check()
    assert not storage.exists(storage.join(store_root, LOCK))
    with holding(store_root):
        pass


def test_what_a_killed_run_left_on_a_store_is_free_after_a_while(store_root):
    fs, path = fs_of(storage.join(store_root, LOCK))
    left = {"host": "gone", "pid": 7, "since": "then", "token": "x", "beat": 3, "beat_at": time.time()}
    fs.pipe_file(path, json.dumps(left).encode())
    with pytest.raises(PreflightError, match=r"process 7 on gone since then .* free in 1 s"), holding(store_root):
        pass
    time.sleep(1.1)
    with holding(store_root):
        assert json.loads(storage.read_bytes(storage.join(store_root, LOCK)))["pid"] == os.getpid()


def test_a_holder_whose_clock_is_behind_keeps_the_output(store_root, monkeypatch):
    with holding(store_root):
        real = time.time
        monkeypatch.setattr(lock.time, "time", lambda: real() + 3600)  # of the one that asks; both, in one process
        fs, path = fs_of(storage.join(store_root, LOCK))
        behind = json.loads(fs.cat_file(path)) | {"beat_at": real() - 3600}
        fs.pipe_file(path, json.dumps(behind).encode())
        with pytest.raises(PreflightError, match="in use"), holding(store_root):
            pass


def test_a_run_that_was_silent_too_long_is_told_that_it_lost_the_output(store_root):
    fs, path = fs_of(storage.join(store_root, LOCK))
    with holding(store_root) as hold:
        other = json.dumps({"token": "another", "beat_at": time.time()}).encode()
        fs.pipe_file(path, other)
        deadline = time.monotonic() + 10
        while not hold.lost and time.monotonic() < deadline:
            fs.pipe_file(path, other)  # a beat that was under way may have replaced it
            time.sleep(0.05)
        with pytest.raises(LockLost, match="another run"):
            hold.check()
    assert storage.read_bytes(storage.join(store_root, LOCK)) == other


def test_a_disk_without_flock_is_held_like_a_store(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    root = str(tmp_path / "out")
    with holding(root):
        assert "beat" in json.loads(Path(root, LOCK).read_text())
        with pytest.raises(PreflightError, match="in use"), holding(root):
            pass
    assert not Path(root, LOCK).exists()
    assert filesystem("file").ls(root) != []
