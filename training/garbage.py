"""Python's garbage collection in a long run: between steps and by count, so that all ranks pause at the same time.

A collection of all objects of a process takes tenths of a second, and Python starts one whenever enough objects were
made: on 256 ranks some rank pauses in almost every step, and the others wait for it.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 50  # steps
YOUNG = 1  # generations 0 and 1: what lives longer is the model's and the data's, and stays


@contextmanager
def collected_by_count() -> Iterator[None]:
    """Meanwhile nothing is collected but by ``collect_after``; what lives already is looked at no more."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def collect_after(step: int) -> None:
    """Collect what was made lately, if ``step`` is one of those at which all ranks do."""
    if step % EVERY == 0:
        gc.collect(YOUNG)
