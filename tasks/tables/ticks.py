"""Ticks: how a task says, while it works, that one more of its sources is done.

Whoever watches a run names a file in the environment variable ``FILE``; a task appends a line for every source, with
the id of its task run. Threads and processes of this machine reach the file, and so do the workers of a local Ray; a
worker elsewhere does not find it, says nothing, and is seen when its task ends.
"""

import os
from collections.abc import Callable
from contextlib import suppress

from prefect.context import TaskRunContext

FILE = "CONTENTV_TICKS"


def ticker() -> Callable[[], None]:
    """What the present task calls whenever a source is done; it does nothing where nobody watches."""
    path, context = os.environ.get(FILE), TaskRunContext.get()
    if not path or context is None:
        return lambda: None
    line = f"{context.task_run.id}\n".encode()

    def tick() -> None:
        # The watcher made the file. Where it is not there, nobody watches: a tick is no reason to end a task.
        with suppress(OSError):
            file = os.open(path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(file, line)  # one short write to a file opened for appending stays whole among others
            finally:
                os.close(file)

    return tick
