"""Buckets: the batch a clip can be part of (report, section 5.3): nearest aspect ratio, nearest whole second."""

from math import log

from tasks.tables.step import Row, StepConfig, derive_rows, step_task

ASPECTS = {"16x9": 16 / 9, "3x2": 3 / 2, "4x3": 4 / 3, "1x1": 1.0, "3x4": 3 / 4, "2x3": 2 / 3, "9x16": 9 / 16}
VERSION = 1


class BucketsConfig(StepConfig):
    """Nothing to choose: the report fixes the seven aspect ratios and the one-second durations."""


def nearest_aspect(width: int, height: int) -> str:
    """The bucket whose ratio needs the least stretching; ratios are compared by their logarithms."""
    return min(ASPECTS, key=lambda name: abs(log(width / height / ASPECTS[name])))


def bucket(row: Row) -> Row:
    """The bucket of a kept clip; an image has duration 0."""
    if not row["keep"]:
        return {}
    seconds = max(1, round(row["duration_s"])) if row["duration_s"] else 0
    return {"bucket_aspect": nearest_aspect(row["crop_w"], row["crop_h"]), "bucket_duration_s": seconds}


@step_task("buckets")
def buckets(table: str, config: BucketsConfig = BucketsConfig()) -> str:
    """Give every kept clip of a shard its bucket; returns the URI of the shard's table."""
    return derive_rows(table, "buckets", config, bucket, VERSION)
