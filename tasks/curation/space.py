"""Whether an output's disk holds what a run will write: the frame stores, which can be larger than the sources.

A few sources of each kind are probed for their length and for what their pictures take (probe.py), and the rest is
reckoned by bytes.
"""

import re
import shutil
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from media.paths import fs_of, is_local, path_of_uri
from tasks.curation.isolated import Died, Limits, call
from tasks.curation.probe import probe
from tasks.tables import storage
from tasks.tables.amounts import size
from tasks.tables.checks import PreflightError
from tasks.tables.found import total_bytes
from tasks.tables.sample import hashes_of
from tasks.tables.sources import IMAGE
from tasks.tables.step import side_by_side

PROBED = 16  # sources of each kind: videos, images
LIMITS = Limits(seconds=10, gib=2)

# Shot tracks, tables and signatures, as a part of the frame stores.
BESIDES = 0.1

# No frame store takes this many times the bytes of its source: that would be a video of some 30 kbit/s.
FAR_MORE = 50


@dataclass(frozen=True)
class Prediction:
    """Bytes that a run will write, and how many sources were probed for it."""

    bytes: int
    probed: int


def predict(sources: pa.Table, samples_per_s: float) -> Prediction | None:
    """What a run over ``sources`` will write; None where nothing can be probed.

    Probed are up to PROBED local videos and as many images, chosen by the hash of their URIs. The others of a kind
    take as much for each of their bytes as those that were probed.
    """
    predicted, probed = 0.0, 0
    names = pc.utf8_lower(sources["source_uri"])
    images = pc.match_substring_regex(names, rf"({'|'.join(map(re.escape, sorted(IMAGE)))})$")
    for kind in (images, pc.invert(images)):
        group = sources.filter(pc.and_(kind, pc.greater(sources["bytes"], 0)))
        found = [(own, taken) for own, taken in _probed(group, samples_per_s) if taken is not None]
        if found:
            own, taken = map(sum, zip(*found, strict=True))
            predicted += total_bytes(group) * taken / own
            probed += len(found)
        elif group.num_rows:
            return None
    return Prediction(int(predicted * (1 + BESIDES)), probed) if probed else None


def _probed(sources: pa.Table, samples_per_s: float) -> list[tuple[int, float | None]]:
    """The sizes of the chosen sources, and what their frame stores will take."""
    order = np.argsort(hashes_of(sources["source_uri"], b"probe"), kind="stable")
    chosen: list[tuple[str, int]] = []
    for row in order.tolist():
        uri = sources["source_uri"][row].as_py()
        if is_local(uri):
            chosen.append((path_of_uri(uri), sources["bytes"][row].as_py()))
        if len(chosen) == PROBED:
            break

    def taken(path: str) -> float | None:
        try:
            return call(probe, {"path": path, "samples_per_s": samples_per_s}, LIMITS)
        except (Died, RuntimeError, OSError, MemoryError):  # the scan will tell what is wrong with it
            return None

    return [(own, store) for (_, own), store in zip(chosen, side_by_side(taken, [p for p, _ in chosen]), strict=True)]


def check_space(root: str, sources: pa.Table, samples_per_s: float) -> str:
    """Raise PreflightError where a local disk cannot hold what a run over ``sources`` will write; else say how it is.

    What an earlier run left in OUT/frames counts as written. Nothing is checked where ``root`` is an object store.
    """
    if not is_local(root):
        return "The space of an object store is not checked."
    free = shutil.disk_usage(fs_of(root)[1]).free
    known = total_bytes(sources)  # 0: the store tells no sizes
    if known and free > FAR_MORE * known * max(1.0, samples_per_s / 2):
        return f"{size(free)} are free, far more than the run can take."  # so nothing is probed for it
    prediction = predict(sources, samples_per_s)
    if prediction is None:
        return "The space that the run needs is not known: no source could be probed."
    needed = prediction.bytes
    if free < needed:
        needed -= _written(root)
    if free < needed:
        raise PreflightError(
            f"output {root!r} has {size(free)} free, and the run needs about {size(needed)} (from {prediction.probed} "
            "sources that were probed); choose another output, or take fewer samples per second (scan.samples_per_s)"
        )
    return f"The run will write about {size(prediction.bytes)}; {size(free)} are free."


def _written(root: str) -> int:
    """The bytes of the frame stores in OUT."""
    fs, folder = fs_of(storage.join(root, "frames"))
    return sum(int(info["size"]) for info in fs.find(folder, detail=True).values())
