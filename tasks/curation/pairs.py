"""Samples and their partners: which picture of a source optical flow compares a sample with, and over what time.

Footage may be *held*: animation on twos, threes or fours, or 10 pictures a second in a file of 60, shows one picture
several times. A partner taken by time alone would often be the sample itself, and motion 0. So the partner is the first
new picture that appeared at least PAIR_GAP_S after the sample's picture did, and the pair's gap is the time between
the two appearances: the sample's may lie before the sample. In footage that is not held each picture is a new one.

Whether a picture repeats the one before is told by their *change*, in grey levels. What coding leaves in a repeated
picture depends on the file, and is more than what slow motion changes in another, so it is judged by the changes around
it: a *hold* opens and closes with a jump, and changes by less than a quarter of both in between.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.tables.frame_store import PAIR_GAP_S

Image = NDArray[np.uint8]  # RGB [h, w, 3]

HELD_MAX_S = 0.41  # a picture that stays for longer is a freeze, and one of its own each time
QUIET = 8.0  # grey levels: no repetition changes by more, however it is coded
JUMP = 4.0  # a jump is this many times the changes inside of the hold
BLOCK = 16  # pixels of a picture with a longest side of about 256
_EARLY_S = 0.005  # time stamps are rounded to milliseconds, some twice


def change(before: Image, after: Image) -> float:
    """How much two pictures of one size differ: the largest mean difference of any BLOCK x BLOCK part, grey levels.

    The largest, as a small subject may be all that moves; of means, as noise of coding has no size.
    """
    height, width = after.shape[:2]
    blocks = max(1, width // BLOCK), max(1, height // BLOCK)
    means = cv2.resize(cv2.absdiff(before, after), blocks, interpolation=cv2.INTER_AREA)
    return float(np.asarray(means, np.float32).mean(axis=-1).max())


@dataclass(frozen=True)
class Pair:
    """A sample and its partner; ``gap_s`` is the time between the appearances of what they show."""

    time_s: float
    image: Image
    partner_time_s: float | None = None  # None: the source, or its segment, ends before
    partner: Image | None = None
    gap_s: float | None = None


@dataclass
class _Sample:
    time_s: float
    image: Image
    appeared_s: float
    in_hold: bool  # what it shows appeared earlier, if the run it lies in turns out to be a hold
    plain: tuple[float, Image] | None = None  # the first picture a gap later, for where nothing new follows
    pair: Pair | None = None


class Pairing:
    """Finds the partners of samples while the pictures of one source pass by; holds little more than these."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._opened_s = -np.inf  # the run of pictures that may be one hold: since when,
        self._jump = 0.0  # by what change it was opened,
        self._quiet = 0.0  # and the largest change in it

    def begin(self) -> None:
        """The next picture begins a segment: nothing before it is compared with it."""
        for sample in self._samples:
            sample.pair = sample.pair or _plain(sample)
        self._opened_s, self._jump, self._quiet = np.inf, np.inf, 0.0

    def add(self, time_s: float, change: float, sampled: bool, image: Callable[[], Image]) -> None:
        """Take the next picture: its ``change`` against the one before, and whether it is a sample.

        ``image`` gives the picture itself, and is called only where it is needed. At the first picture of a segment
        ``change`` does not matter.
        """
        if self._opened_s == np.inf:
            self._opened_s, new = time_s, True
        else:
            new = self._is_new(time_s, change)
        picture: Image | None = None
        for sample in self._samples:
            if sample.pair is None and time_s - sample.time_s >= PAIR_GAP_S - _EARLY_S and not sample.plain:
                picture = image() if picture is None else picture
                sample.plain = time_s, picture
            if sample.pair is None and new and time_s - sample.appeared_s >= PAIR_GAP_S - _EARLY_S:
                picture = image() if picture is None else picture
                gap_s = time_s - sample.appeared_s
                sample.pair = Pair(sample.time_s, sample.image, time_s, picture, gap_s)
            if sample.pair is None and time_s - sample.time_s > HELD_MAX_S + PAIR_GAP_S:
                sample.pair = _plain(sample)
        if sampled:
            self._samples.append(_Sample(time_s, image() if picture is None else picture, time_s, not new))

    def _is_new(self, time_s: float, change: float) -> bool:
        """Whether a picture is not one more of the run before it; if so it opens the next run."""
        held = time_s - self._opened_s <= HELD_MAX_S
        if held and change <= QUIET and JUMP * max(change, 1.0) <= self._jump:
            self._quiet = max(self._quiet, change)
            return False
        was_hold = held and change >= JUMP * max(self._quiet, 1.0)
        for sample in self._samples:
            if sample.in_hold and was_hold:
                sample.appeared_s = self._opened_s
            if sample.plain and not was_hold:  # what followed the sample was new after all
                sample.pair = sample.pair or _plain(sample)
            sample.in_hold = False
        self._opened_s, self._jump, self._quiet = time_s, change, 0.0
        return True

    def finished(self) -> Iterator[Pair]:
        """The pairs that are complete, in order of their samples, each once."""
        while self._samples and (pair := self._samples[0].pair):
            self._samples.popleft()
            yield pair


def _plain(sample: _Sample) -> Pair:
    """A sample with the first picture a gap later, or with none."""
    if sample.plain is None:
        return Pair(sample.time_s, sample.image)
    time_s, image = sample.plain
    return Pair(sample.time_s, sample.image, time_s, image, time_s - sample.time_s)
