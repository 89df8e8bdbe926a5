"""Prefect's log lines in a terminal: what a curation leaves of them there. The Prefect UI keeps them all."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.logging.configuration import setup_logging

# Prefect reads any key of its logging.yml from such a variable; processes that are started inherit it.
_CONSOLE_LEVEL = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"


def worth_showing(record: logging.LogRecord) -> bool:
    """Whether a line tells what nothing else does: warnings of steps, but not that a task ended, nor the traceback of
    one that failed, as the run says that in a sentence at its end."""
    told = record.exc_info or record.getMessage().startswith("Finished in state")
    return record.levelno >= logging.WARNING and not told


@contextmanager
def quiet() -> Iterator[None]:
    """Show only the lines worth showing while the context lasts."""
    setup_logging()
    before = os.environ.get(_CONSOLE_LEVEL)
    os.environ[_CONSOLE_LEVEL] = "CRITICAL"
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(worth_showing)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(worth_showing)
        os.environ.pop(_CONSOLE_LEVEL)
        if before is not None:
            os.environ[_CONSOLE_LEVEL] = before
