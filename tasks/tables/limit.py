"""Limits: what range of a score is kept, and how a value lies in it."""

from dataclasses import dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Limit:
    """A score's allowed range: a clip whose ``column`` lies outside ``[low, high]`` is rejected by ``reason``.

    ``words`` say in a sentence what is wrong with a rejected clip. ``boxes`` are the columns of boxes that show it on
    the picture, and ``legend`` says what they are.
    """

    reason: str
    column: str
    low: float | None = None
    high: float | None = None
    words: str = ""
    boxes: tuple[str, ...] = ()
    legend: str = ""

    @property
    def off(self) -> bool:
        """Whether the limit rejects nothing."""
        return self.low is None and self.high is None

    def rejects(self, row: dict[str, Any]) -> bool:
        """Whether the value of a row lies outside; a value that is not there lies nowhere."""
        value = value_of(row, self.column)
        if value is None:
            # An image has no motion to speak of; a video that could not be measured cannot be vouched for.
            return bool(row["duration_s"]) and not self.off
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)

    def senseless(self, row: dict[str, Any]) -> bool:
        """Whether the value of a row is no finite number: neither inside nor outside."""
        value = value_of(row, self.column)
        return value is not None and not isfinite(value)


def value_of(row: dict[str, Any], column: str) -> float | None:
    """A score of a row; ``crop_area`` (fraction of the frame that the crop keeps) is derived, not stored. An image has
    no ``fps``: in the table it is 0."""
    if column == "fps" and not row["duration_s"]:
        return None
    if column == "crop_area":
        if row["crop_w"] is None:
            return None
        frame = row["width"] * row["height"]
        return row["crop_w"] * row["crop_h"] / frame if frame else None
    value: float | None = row[column]
    return value
