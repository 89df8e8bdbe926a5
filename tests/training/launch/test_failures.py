"""Whom a run's failure is put down to."""

import json
import signal

import pytest

from training.launch.failures import ended, first_failure, reported

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:8127"
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or there was a network error, NCCL version 2.27"
HCCL = "[ERROR] HCCL error in: ProcessGroupHCCL.cpp:64, HCCL function error: hcclAllReduce, error code is 4"


@pytest.fixture
def errors(tmp_path):
    def left(rank, time, kind, message, retry=True):
        report = {"rank": rank, "time": time, "kind": kind, "message": message, "traceback": "T", "retry": retry}
        (tmp_path / f"rank-{rank:05d}.json").write_text(json.dumps(report))

    return tmp_path, left


@pytest.mark.parametrize(
    ("kind", "message"), [("RuntimeError", GLOO), ("DistBackendError", NCCL), ("RuntimeError", HCCL)]
)
def test_a_lost_connection_is_no_cause_even_where_it_was_noted_first(errors, kind, message):
    folder, left = errors
    left(0, 1.0, kind, message)
    left(3, 2.0, "ValueError", "clip c7 has no frames", retry=False)
    failure = first_failure(reported(folder))
    assert failure.headline == "rank 3: ValueError: clip c7 has no frames" and not failure.retry


def test_a_rank_that_was_killed_comes_before_those_that_lost_it(errors):
    folder, left = errors
    left(0, 1.5, "RuntimeError", GLOO)
    failure = first_failure(reported(folder), [ended(2, -signal.SIGKILL, 2.0), ended(0, 1, 2.0)])
    assert failure.rank == 2 and "SIGKILL" in failure.headline and failure.retry


def test_of_two_causes_the_earlier_one_is_told(errors):
    folder, left = errors
    left(0, 2.0, "OSError", "no space left")
    left(1, 1.0, "OSError", "the disk is gone")
    assert first_failure(reported(folder)).rank == 1


def test_a_lost_connection_is_told_where_there_is_nothing_else(errors):
    folder, left = errors
    left(1, 1.0, "RuntimeError", GLOO)
    aborted = ended(0, -signal.SIGABRT, 2.0, ["Watchdog caught collective operation timeout"])
    assert first_failure(reported(folder), [aborted, ended(2, -signal.SIGTERM, 0.5)]).rank == 1


def test_a_memory_error_is_a_runtime_error_and_a_cause(errors):
    folder, left = errors
    left(0, 1.0, "RuntimeError", GLOO)
    left(1, 1.2, "OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB")
    left(2, 1.1, "RuntimeError", "The size of tensor a (3) must match the size of tensor b (4)")
    assert first_failure(reported(folder)).rank == 2


def test_exit_status_2_is_not_worth_a_restart():
    assert not first_failure([], [ended(0, 2, 1.0)]).retry
    assert first_failure([], [ended(0, 1, 1.0)]).retry


def test_where_no_rank_failed_there_is_no_failure(tmp_path):
    assert first_failure(reported(tmp_path / "errors")) is None
