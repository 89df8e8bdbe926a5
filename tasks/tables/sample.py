"""A part of the sources that stands for all of them, and what the whole would take."""

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.tables.amounts import duration, size
from tasks.tables.checks import PreflightError
from tasks.tables.found import ROWS_AT_ONCE


def take_part(sources: pa.Table, limit: int | None = None, sample: str | float | None = None) -> pa.Table:
    """The sources that a run with ``limit`` and ``sample`` takes, in order of URI.

    ``sample`` is a fraction (0.01) or a percentage ("1%"): those whose URI's hash is in the lowest 1 %, at least one.
    ``limit`` takes the first so many in the order of the hash. So a smaller part lies inside a larger one, a part
    changes little when the library grows, and no folder is preferred.

    Raises PreflightError for a limit below 1 and for a sample that is not above 0 and at most 1.
    """
    fraction = fraction_of(sample)
    if limit is not None and limit < 1:
        raise PreflightError(f"limit {limit} takes no source: it must be at least 1")
    if limit is None and fraction == 1:
        return sources
    hashes = hashes_of(sources["source_uri"], b"sample")
    order = np.argsort(hashes, kind="stable")
    count = max(1, int(np.count_nonzero(hashes < fraction * 2.0**64))) if fraction < 1 else len(hashes)
    taken = np.sort(order[: min(count, limit or count)])
    return sources.take(pa.array(taken))


def fraction_of(sample: str | float | None) -> float:
    """The fraction that "1%", "0.01" and 0.01 mean; 1 for None. Raises PreflightError for what is none."""
    if sample is None:
        return 1.0
    try:
        text = str(sample).strip()
        fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise PreflightError(f"sample {sample!r} is no part of the sources: write 1% or 0.01, up to 100%")
    return fraction


def hashes_of(texts: pa.ChunkedArray, purpose: bytes) -> NDArray[np.uint64]:
    """A 64-bit hash of each text, the same on every machine; hashes for different purposes are independent."""
    hashes = np.empty(len(texts), np.uint64)
    for start in range(0, len(texts), ROWS_AT_ONCE):
        block = texts.slice(start, ROWS_AT_ONCE).to_pylist()
        digests = (hashlib.blake2b(text.encode(), digest_size=8, person=purpose).digest() for text in block)
        hashes[start : start + len(block)] = np.frombuffer(b"".join(digests), "<u8")
    return hashes


def estimate(taken: tuple[int, int], whole: tuple[int, int], seconds: float, written: int) -> str:
    """What the whole library would take, in a sentence, from a run over a part of it.

    Args:
        taken: Sources that the run took, and their bytes.
        whole: The same of the whole library.
        seconds: Wall time of the run.
        written: Bytes that the run left in its output.

    Both grow with the bytes of the sources; where sizes are unknown (0 bytes), with their number.
    """
    sized = taken[1] and whole[1]
    factor = whole[1] / taken[1] if sized else whole[0] / max(1, taken[0])
    return (
        f"{taken[0]} of {whole[0]} sources ({size(taken[1])} of {size(whole[1])}) took {duration(seconds)} and "
        f"{size(written)} of disk; all of them would take about {duration(seconds * factor)} and "
        f"{size(written * factor)}, by {'bytes' if sized else 'number'}."
    )
