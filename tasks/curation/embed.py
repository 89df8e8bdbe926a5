"""Embed: what duplicate search knows of a source, read off its sampled frames without learned weights.

The report (section 3.1, Video Deduplication) uses an internal embedding model. This one is weight-free and in two
parts: an *embedding*, which is compared between all sources, and a *signature*, the luma of the source as a small film,
which is compared only where embeddings are close. Both see the picture without its borders, so that borders make no
two sources alike.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.tables import storage
from tasks.tables.borders import inside_black, largest_channel
from tasks.tables.clip import frames_of
from tasks.tables.frame_store import FrameStore
from tasks.tables.guard import Faults, guarded
from tasks.tables.keys import root_of
from tasks.tables.picture import Image, resized, shrink
from tasks.tables.rows import narrow
from tasks.tables.schema import fields_of
from tasks.tables.step import Made, Row, kept, side_by_side, step_task

SIDE = 48  # of a signature's frames, pixels
RATE = 2.0  # of a signature's frames, per second
STRETCH = 32  # frames: a longer source is known by its first, middle and last stretch
LUMA_SIDE = 160  # of the pictures that borders are sought in
CELLS, ORIENTATIONS = 4, 8
NOISE = 2.0  # gradient that compression leaves in a flat picture, grey levels a pixel
SOURCES_PER_GROUP = 1  # of the table: a signature is read without its neighbours
FLAT = 1.0  # gives sources without any detail a direction, and the same one

VERSION = 3

Film = NDArray[np.uint8]  # [T, SIDE, SIDE]


def film_of(images: Sequence[Image]) -> Film:
    """RGB pictures of one size as luma without black borders, squeezed to [T, SIDE, SIDE].

    Bars of a blurred copy stay: they are judged by so little that a crop of the same film is often judged otherwise.
    """
    small = [shrink(image, LUMA_SIDE) for image in images]
    box = inside_black([largest_channel(image) for image in small])
    luma = [cv2.cvtColor(image[box.y : box.y + box.h, box.x : box.x + box.w], cv2.COLOR_RGB2GRAY) for image in small]
    return np.stack([resized(np.asarray(plane, np.uint8), SIDE, SIDE) for plane in luma])


def signature_of(store: FrameStore) -> Film:
    """The film of a source at RATE frames a second; of a long one the first, middle and last STRETCH frames."""
    first_s, last_s = store.times_s[0], store.times_s[-1]
    count = 1 + int((last_s - first_s) * RATE + 0.25)
    wanted = np.arange(count)
    if count > 3 * STRETCH:
        middle = (count - STRETCH) // 2
        wanted = np.r_[:STRETCH, middle : middle + STRETCH, count - STRETCH : count]
    times_s = first_s + wanted / RATE
    nearest = np.unique([np.abs(store.times_s - t).argmin() for t in times_s])
    images = [store.frames(t, np.nextafter(t, np.inf))[0].image for t in store.times_s[nearest]]
    film = film_of(images)
    return film[[np.abs(store.times_s[nearest] - t).argmin() for t in times_s]]


def embedding_of(film: Film) -> NDArray[np.float32]:
    """Unit vector [CELLS * CELLS * ORIENTATIONS + 1]: where in the picture which orientations are, mean over time.

    Histograms of gradient orientation over a grid of soft cells, as in GIST (Oliva and Torralba, 2001): what light,
    colour and compression change least.
    """
    planes = film.astype(np.float32)
    dy, dx = np.gradient(planes, axis=(1, 2))
    strength = np.clip(np.hypot(dx, dy) - NOISE, 0, None)
    angle = np.arctan2(dy, dx) % np.pi * (ORIENTATIONS / np.pi)
    position = np.abs((np.arange(SIDE) + 0.5) * CELLS / SIDE - 0.5 - np.arange(CELLS)[:, None])
    cell = np.clip(1 - position, 0, None)  # [CELLS, SIDE]
    histogram = []
    for orientation in range(ORIENTATIONS):
        gap = np.abs(angle - orientation)
        share = np.clip(1 - np.minimum(gap, ORIENTATIONS - gap), 0, None) * strength
        histogram.append((cell @ share @ cell.T).mean(axis=0))
    vector = np.sqrt(np.stack(histogram).ravel())
    vector = np.append(vector - vector.mean(), FLAT)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@step_task("embed")
def embed(table: str) -> str:
    """Embed every readable source of a shard; returns the URI of the step's table. The embedding has no settings: a
    number changed in one run would make old and new embeddings incomparable."""

    def make() -> Made:
        faults = Faults()
        rows = storage.read_table(table, ["source_uri", "source_id", "frames_uri", "error"]).to_pylist()

        def embed_one(row: Row) -> Row:
            own = {"source_uri": row["source_uri"], "source_id": row["source_id"], "error": None}
            if not row["error"]:
                with guarded([own], "embed", faults), frames_of(root_of(table), row) as store:
                    film = signature_of(store)
                    own |= {"embedding": embedding_of(film), "signature": film.tobytes()}
            return own

        return Made(narrow(side_by_side(embed_one, rows), fields_of("embed")), finished=not faults.passed)

    return kept([table], "embed", [VERSION], make, rows_per_group=SOURCES_PER_GROUP)
