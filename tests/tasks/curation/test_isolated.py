import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.curation import isolated
from tasks.curation.isolated import Died, Limits, call
from tasks.tables.faults import PassingFault
from tests.tasks.curation import hostile_work as work

AMPLE = Limits(60, 4)
SOURCE = {"path": "/videos/a.mp4", "folder": "/tmp/scratch", "samples_per_s": 2.0}


def double(number: int) -> int:
    """As a task would: from whatever process this is."""
    return call(work.double, {"number": number}, AMPLE)


@pytest.mark.parametrize(
    ("act", "limits", "words"),
    [
        (work.waits, Limits(0.2, 4), "decoding took longer than 0.2 s"),
        (work.takes_memory, Limits(60, 0.5), "decoding needed more than 0.5 GiB of memory"),
        (work.reads_no_memory, AMPLE, r"the decoder died \(signal 11\)"),
        (work.leaves, AMPLE, r"the decoder died \(exit status 3\)"),
    ],
)
def test_what_dies_costs_that_work_alone(act, limits, words):
    with ThreadPoolExecutor(3) as pool:
        others = pool.map(double, range(8))
        with pytest.raises(Died, match=words):
            call(act, SOURCE, limits)
    assert list(others) == [2 * number for number in range(8)]


def test_a_process_that_somebody_else_killed_may_live_the_next_time():
    with pytest.raises(PassingFault, match="signal 9"):
        call(work.is_killed, SOURCE, AMPLE)


def test_an_error_of_the_machine_keeps_its_number_and_not_its_path():
    with pytest.raises(OSError, match="No space left") as caught:
        call(work.fills_the_disk, SOURCE, AMPLE)
    assert caught.value.errno == errno.ENOSPC
    assert "samples" not in str(caught.value)


def test_an_error_of_the_work_keeps_its_words():
    with pytest.raises(RuntimeError, match=r"a bug met /videos/a\.mp4"):
        call(work.breaks, SOURCE, AMPLE)


def test_the_process_knows_no_prefect_and_is_forked_from_one_thread():
    assert call(work.prefect_and_threads, {}, AMPLE)[0] is False
    (thread,) = os.listdir(f"/proc/{isolated._running().process.pid}/task")
    assert int(thread) == isolated._running().process.pid


def test_a_server_that_was_killed_is_replaced_also_in_the_middle_of_work(tmp_path):
    before = isolated._running()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call, work.takes_half_a_second, SOURCE, AMPLE)
        time.sleep(0.2)
        before.process.kill()
        assert answer.result() == {"error": "it came to its end"}
    assert isolated._running().process.pid != before.process.pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_process_outlives_the_one_that_asked_for_it(tmp_path):
    said = tmp_path / "pid"
    program = tmp_path / "program.py"
    # Without a guard around it: the work's process must not run the program again.
    program.write_text(
        "from tasks.curation.isolated import Limits, call\n"
        "from tests.tasks.curation.hostile_work import loop\n"
        f"call(loop, {{'until': {str(said)!r}}}, Limits(60, 4))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, str(program)], env=environment) as parent:
        ends_s = time.monotonic() + 60
        while not (said.exists() and said.read_text()) and time.monotonic() < ends_s:
            time.sleep(0.05)
        pid = int(said.read_text())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
    ends_s = time.monotonic() + 10
    while alive(pid) and time.monotonic() < ends_s:
        time.sleep(0.05)
    assert not alive(pid)


def test_all_kinds_of_workers_may_call():
    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=double, args=(number,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(double, 4).result() == 8


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_daemonic_process_may_call():
    double(1)  # so that this process has a server, which is not the fork's
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=lambda: answers.put(double(5)), daemon=True)
    process.start()
    assert answers.get(timeout=60) == 10
    process.join()


def test_a_ray_worker_may_call():
    ray = pytest.importorskip("ray")
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[3])}}
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    try:
        assert ray.get(ray.remote(double).remote(6)) == 12
    finally:
        ray.shutdown()
