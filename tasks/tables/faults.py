"""Faults that pass: what failed because of the network, memory or a disk may well succeed the next time.

Such a fault is tried again, and what still fails is never kept as a result. Any other fault is a fact about the input.
Libraries of object stores are recognised by the names of their classes, so that none of them has to be installed.
"""

import errno
import http.client
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

R = TypeVar("R")

_ERRNOS = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.EAGAIN),
    *(errno.EINTR, errno.EBUSY, errno.ESTALE, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED),
    *(errno.ECONNABORTED, errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ESHUTDOWN, errno.EADDRNOTAVAIL),
    *(getattr(errno, name) for name in ("EREMOTEIO", "ECOMM", "ENOLINK") if hasattr(errno, name)),
}
_STATUSES = {408, 425, 429, 500, 502, 503, 504}  # of HTTP
# The words that S3 and its likes use where they ask a client to come again.
_CODES = {
    *(
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeTooSkewed",
    ),
    *("InternalError", "ServiceUnavailable", "ServerBusy", "OperationTimedOut"),
}
_CLASSES = {
    "aiohttp": {"ClientConnectionError", "ClientPayloadError", "ServerTimeoutError"},
    "azure": {"ServiceRequestError", "ServiceResponseError", "IncompleteReadError"},
    "botocore": {"HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseStreamingError"},
    "google": {"RetryError", "TransportError", "TooManyRequests", "ServerError"},
    "paramiko": {"SSHException"},
    "requests": {"ConnectionError", "Timeout", "ChunkedEncodingError"},
    "torch": {"OutOfMemoryError"},
    "urllib3": {"TimeoutError", "ProtocolError", "NewConnectionError", "IncompleteRead"},
}


class PassingFault(RuntimeError):
    """Something outside of the input went wrong, and may be gone the next time; the message says what."""


def passing(problem: BaseException) -> bool:
    """Whether ``problem``, or what it was raised from, may be gone the next time: network, time-out, memory, disk."""
    return any(_passes(one) for one in _chain(problem))


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        yield problem
        problem = problem.__cause__


def _passes(problem: BaseException) -> bool:
    if isinstance(problem, PassingFault | MemoryError | TimeoutError | ConnectionError | http.client.IncompleteRead):
        return True
    classes = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(problem).__mro__]
    if any(name in _CLASSES.get(package, ()) for package, name in classes):
        return True
    if ("cv2", "error") in classes:
        return getattr(problem, "code", None) == -4  # cv::Error::StsNoMem
    if _status(problem) in _STATUSES or _code(problem) in _CODES:
        return True
    # A host name that is not found is as often a network that is down as a name that is wrong.
    return isinstance(problem, OSError) and (problem.errno in _ERRNOS or ("socket", "gaierror") in classes)


def _status(problem: BaseException) -> int | None:
    """The HTTP status that an exception carries, as aiohttp, azure, gcsfs and botocore name it."""
    for name in ("status", "status_code", "code"):
        value = getattr(problem, name, None)
        if isinstance(value, int | str) and str(value).isdecimal():
            return int(value)
    response = getattr(problem, "response", None)
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return found if isinstance(found, int) else None


def _code(problem: BaseException) -> str | None:
    """The code in words of an answer of S3, as botocore carries it."""
    response = getattr(problem, "response", None)
    found = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return found if isinstance(found, str) else None


def in_words(problem: BaseException) -> str:
    """What an exception says, or its class where it says nothing; without the number and the path of an OSError."""
    said = problem.strerror if isinstance(problem, OSError) else None
    return said or str(problem) or type(problem).__name__


def tried_again(work: Callable[[], R], waits_s: Sequence[float]) -> R:
    """What ``work`` returns; after a fault that may pass it is tried again, once after each of ``waits_s`` seconds."""
    for wait_s in waits_s:
        try:
            return work()
        except Exception as problem:
            if not passing(problem):
                raise
        time.sleep(wait_s)
    return work()
