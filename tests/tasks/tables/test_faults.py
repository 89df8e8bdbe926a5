import errno
import socket

import pytest

from tasks.tables.faults import PassingFault, in_words, passing, tried_again


def made(package: str, name: str, base: type[Exception] = Exception, **attributes: object) -> Exception:
    """An exception as a library that is not installed would raise it: its class has a name in a module."""
    problem = type(name, (base,), {"__module__": f"{package}.exceptions"})("words")
    for key, value in attributes.items():
        setattr(problem, key, value)
    return problem


def answer(status: int, code: str) -> dict[str, object]:
    return {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


@pytest.mark.parametrize(
    "problem",
    [
        *(OSError(number, "words") for number in (errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EHOSTUNREACH)),
        TimeoutError(),
        ConnectionResetError(),
        MemoryError(),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        PassingFault("words"),
        made(
            "aiohttp", "ServerDisconnectedError", type("ClientConnectionError", (Exception,), {"__module__": "aiohttp"})
        ),
        made("aiohttp", "ClientResponseError", status=503),
        made("botocore", "HTTPClientError"),
        made("botocore", "ClientError", response=answer(400, "RequestTimeout")),
        made("botocore", "ClientError", response=answer(503, "SlowDown")),
        made("azure", "HttpResponseError", status_code=429),
        made("gcsfs", "HttpError", code="502"),
        made("torch", "OutOfMemoryError", RuntimeError),
    ],
    ids=repr,
)
def test_network_memory_and_disk_may_be_well_the_next_time(problem):
    assert passing(problem)


@pytest.mark.parametrize(
    "problem",
    [
        FileNotFoundError(errno.ENOENT, "words"),
        PermissionError(errno.EACCES, "words"),
        IsADirectoryError(errno.EISDIR, "words"),
        OSError("without a number"),
        ValueError("words"),
        RuntimeError("words"),
        made("botocore", "ClientError", response=answer(404, "NoSuchKey")),
        made("aiohttp", "ClientResponseError", status=403),
        made("botocore", "ParamValidationError"),
    ],
    ids=repr,
)
def test_what_is_so_stays_so(problem):
    assert not passing(problem)


def test_what_an_error_was_raised_from_counts():
    try:
        raise ValueError("no Parquet file") from TimeoutError()
    except ValueError as problem:
        assert passing(problem)


def test_words_leave_out_the_path():
    try:
        open("/no/such/file.mp4")  # noqa: SIM115
    except OSError as problem:
        assert in_words(problem) == "No such file or directory"
    assert in_words(KeyError()) == "KeyError"


class Flaky:
    """Fails ``times`` times with ``problem``, then answers."""

    def __init__(self, times: int, problem: Exception) -> None:
        self.times, self.problem, self.asked = times, problem, 0

    def __call__(self) -> str:
        self.asked += 1
        if self.asked <= self.times:
            raise self.problem
        return "answer"


def test_a_passing_fault_is_tried_again():
    work = Flaky(2, TimeoutError())
    assert tried_again(work, [0, 0, 0]) == "answer"
    assert work.asked == 3


def test_what_stays_is_raised_in_the_end():
    work = Flaky(9, TimeoutError())
    with pytest.raises(TimeoutError):
        tried_again(work, [0, 0])
    assert work.asked == 3


def test_any_other_fault_is_not_tried_again():
    work = Flaky(1, ValueError())
    with pytest.raises(ValueError):
        tried_again(work, [0, 0])
    assert work.asked == 1
