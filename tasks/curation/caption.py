"""Captions (report, section 3.3). In profile ``lite`` a template says what the scores say, and no more.

``caption_model`` marks the captions as template text, so that nobody trains on them by mistake. The seam for a
multimodal model is ``describe``: from a clip's row to its short and detailed captions.
"""

from tasks.tables.step import Row, StepConfig, derive_rows, step_task

LITE = "template-lite"
VERSION = 1


class CaptionConfig(StepConfig):
    """Nothing to choose in profile ``lite``."""


def amount(speed: float, still: float, fast: float) -> str:
    """``speed`` in words; the bounds are in frame diagonals per second."""
    return "no" if speed < still else "slow" if speed < fast else "fast"


def describe(row: Row) -> Row:
    """Template captions of a clip from its measured scores."""
    width, height = row["crop_w"], row["crop_h"]
    shape = "landscape" if width > 1.1 * height else "portrait" if height > 1.1 * width else "square"
    if not row["duration_s"]:
        short = f"A {shape} photograph."
        detailed = f"{short} {width} by {height} pixels, aesthetic score {row['aesthetic']:.1f}."
    else:
        camera = amount(row["motion_bg"], still=0.005, fast=0.15)
        subject = amount(row["motion_fg"], still=0.01, fast=0.15)
        short = f"A {shape} video with {camera} camera movement and {subject} subject movement."
        detailed = (
            f"{short} It lasts {row['duration_s']:.1f} seconds at {row['fps']:.0f} frames per second, "
            f"{width} by {height} pixels. The background moves {row['motion_bg']:.3f} and the foreground "
            f"{row['motion_fg']:.3f} frame diagonals per second; aesthetic score {row['aesthetic']:.1f}."
        )
    return {"caption_short": short, "caption_detailed": detailed, "caption_model": LITE}


@step_task("caption")
def caption(table: str, config: CaptionConfig = CaptionConfig()) -> str:
    """Caption every kept clip of a shard; returns the URI of the shard's table."""
    return derive_rows(table, "caption", config, lambda row: describe(row) if row["keep"] else {}, VERSION)
