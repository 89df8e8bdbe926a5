"""Buckets: the batch a clip can be part of (report, section 5.3): nearest aspect ratio, nearest whole second."""

from math import log

from tasks.tables.guard import Faults, guarded
from tasks.tables.rows import joined, narrow
from tasks.tables.schema import fields_of
from tasks.tables.step import Made, Row, kept, step_task

ASPECTS = {"16x9": 16 / 9, "3x2": 3 / 2, "4x3": 4 / 3, "1x1": 1.0, "3x4": 3 / 4, "2x3": 2 / 3, "9x16": 9 / 16}
VERSION = 2


def nearest_aspect(width: int, height: int) -> str:
    """The bucket whose ratio needs the least stretching; ratios are compared by their logarithms. ValueError: the
    picture has no area."""
    if min(width, height) < 1:
        raise ValueError(f"a picture of {width} by {height} pixels has no shape")
    return min(ASPECTS, key=lambda name: abs(log(width / height / ASPECTS[name])))


def bucket(row: Row) -> Row:
    """The bucket of a kept clip; an image has duration 0."""
    if not row["keep"]:
        return {}
    seconds = max(1, round(row["duration_s"])) if row["duration_s"] else 0
    return {"bucket_aspect": nearest_aspect(row["crop_w"], row["crop_h"]), "bucket_duration_s": seconds}


@step_task("buckets")
def buckets(tables: list[str]) -> list[str]:
    """Give every kept clip of a shard its bucket; returns ``tables`` and the one with the buckets. The report fixes the
    seven aspect ratios and the one-second durations, so there is nothing to choose."""

    def make() -> Made:
        faults, found = Faults(), []
        for row in joined(tables):
            if row["clip_id"]:
                own = {"clip_id": row["clip_id"], "source_uri": row["source_uri"], "error": None}
                with guarded([own], "buckets", faults):
                    own |= bucket(row)
                found.append(own)
        return Made(narrow(found, fields_of("buckets")), finished=not faults.passed)

    return [*tables, kept(tables, "buckets", [VERSION], make)]
