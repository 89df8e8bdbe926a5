"""Filters as a user writes them."""

import numpy as np

from tasks.curation.filter import Filter
from tasks.tables.clip import Clip


def darkness(seen: Clip) -> float:
    return 255 - float(np.mean([frame.image.mean() for frame in seen.frames(2)]))


dark = Filter(column="darkness", meaning="255 less the mean level", score=darkness)
DARK = "tests.tasks.curation.own_filters:dark"
