"""Which pictures of a stream a viewer sees, and from when to when, as their time stamps tell.

A decoder hands pictures out in the order of their display, so a stamp that does not increase is a wrong stamp, never a
wrong order. Here, one by one and whatever the container:

- one stamp far ahead or far behind is passed over, its picture shown between its neighbours; a stamp that is off by a
  picture or two is put right;
- stamps that go back and stay back are a second recording, and an error;
- a picture ends where the next one begins, except before a *hole*, a stretch of more than HOLE_S without a new picture.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from media.source import BadSource

HOLE_S = 1.0  # a picture that stands for longer, before another one comes, is a gap in the recording or a slide
_LATE = 1.02 * HOLE_S  # rates of 1 a second are rounded to milliseconds, or are 1000/1001
JITTER = 2.5  # pictures: how far stamps may go back and be put right
_LONE = 5.0  # a last picture this many times further off than all before it lasted was stamped wrongly


@dataclass(frozen=True)
class Stamped:
    """A decoded picture with its stamp; ``duration_s`` is how long the container shows it, 0 where it does not say."""

    time_s: float
    duration_s: float
    size: tuple[int, int]  # width and height as decoded, pixels
    frame: Any


@dataclass(frozen=True)
class Shown:
    """A picture and the time in which a viewer sees it, ``time_s <= t < end_s``, seconds of the container's clock.

    ``segment`` numbers, from 0, the stretches without a hole in time and of one picture size. ``frame`` is PyAV's.
    """

    time_s: float
    end_s: float
    frame: Any
    segment: int


@dataclass
class Pace:
    """The usual time from one picture to the next: the median of the last ones, holes left out."""

    assumed_s: float  # until two pictures were seen
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=31))

    def saw(self, interval_s: float) -> None:
        if 0 < interval_s <= _LATE:
            self._recent.append(interval_s)

    @property
    def usual_s(self) -> float:
        return statistics.median(self._recent) if self._recent else self.assumed_s


@dataclass
class WrongStamps:
    """How many stamps were far off, and the latest of them."""

    count: int = 0
    latest_s: float = -float("inf")

    def note(self, picture: Stamped) -> None:
        self.count += 1
        self.latest_s = max(self.latest_s, picture.time_s)


def in_order(
    pictures: Iterable[Stamped], pace: Pace, wrong: WrongStamps, promised_end_s: float | None = None
) -> Iterator[Stamped]:
    """The pictures with strictly increasing times, each once the next one has confirmed its stamp.

    ``promised_end_s`` is where the container says that the stream ends, and judges the last picture of all.
    BadSource: the stamps go back for good.
    """
    first_s = last_s = -float("inf")
    given = 0
    held: Stamped | None = None  # waits for the next picture
    behind: Stamped | None = None  # came after ``held`` with an earlier stamp: wrong, or a second recording

    def give(picture: Stamped) -> Stamped:
        nonlocal first_s, last_s, given
        if given:
            pace.saw(picture.time_s - last_s)
        else:
            first_s = picture.time_s
        given, last_s = given + 1, picture.time_s
        return picture

    for new in pictures:
        if held is None:
            held = new
            continue
        if behind is not None:
            if new.time_s <= held.time_s:
                raise BadSource(_starts_again(held, behind, pace))
            wrong.note(behind)
            yield give(held)
            held, behind = _between(behind, last_s, new.time_s, pace), None
        back_s = held.time_s - new.time_s
        if back_s >= 0:
            if back_s <= JITTER * pace.usual_s:
                held, new = _put_right(held, new, last_s, pace)
            elif new.time_s > last_s:
                wrong.note(held)
                if not given:  # nothing tells when the first picture was
                    held = new
                    continue
                held = _between(held, last_s, new.time_s, pace)
            else:
                behind = new
                continue
        yield give(held)
        held = new
    if held is None:
        return
    gap_s = held.time_s - last_s
    if given and gap_s > _LATE:
        beyond = promised_end_s is not None and held.time_s > promised_end_s + pace.usual_s
        lone = given >= 10 and gap_s > _LONE * (last_s - first_s + pace.usual_s)
        if beyond or lone:
            wrong.note(held)
            held = replace(held, time_s=last_s + pace.usual_s, duration_s=0.0)
    yield give(held)
    if behind is not None:
        wrong.note(behind)
        yield give(replace(behind, time_s=last_s + pace.usual_s, duration_s=0.0))


def _between(picture: Stamped, last_s: float, next_s: float, pace: Pace) -> Stamped:
    """The picture with a time between its neighbours', in place of a stamp that is far off."""
    gap_s = next_s - last_s
    return replace(picture, time_s=last_s + (gap_s / 2 if gap_s <= HOLE_S else pace.usual_s), duration_s=0.0)


def _put_right(held: Stamped, new: Stamped, last_s: float, pace: Pace) -> tuple[Stamped, Stamped]:
    """Two pictures whose stamps are equal or a little in the wrong order, with stamps in order."""
    if last_s < new.time_s < held.time_s:
        return replace(held, time_s=new.time_s), replace(new, time_s=held.time_s)
    return held, replace(new, time_s=held.time_s + pace.usual_s / 2)


def _starts_again(held: Stamped, behind: Stamped, pace: Pace) -> str:
    end_s = held.time_s + pace.usual_s
    return (
        f"its time stamps start again at {end_s:.1f} s, with {behind.time_s:.1f} s: two recordings in one file; "
        "remux it, which gives it one clock: ffmpeg -i IN -c copy OUT.mkv"
    )


def on_screen(
    pictures: Iterable[Stamped], pace: Pace, least_end_s: float | None = None, most_end_s: float | None = None
) -> Iterator[Shown]:
    """The pictures with the ends of their time on screen; this is the one place that computes them.

    The last picture of all lasts as long as the container says. Where pictures are stored in another order than they
    are shown in, that is the duration of one of those before it. ``least_end_s`` and ``most_end_s`` are what the
    container says of the end of the whole stream, where it can be trusted.
    """
    segment = 0
    now: Stamped | None = None
    until_s = -float("inf")
    for following in pictures:
        if now is not None:
            late = following.time_s - now.time_s > _LATE
            end_s = now.time_s + min(pace.usual_s, HOLE_S) if late else following.time_s
            yield Shown(now.time_s, end_s, now.frame, segment)
            segment += late or now.size != following.size
            until_s = -float("inf") if late else until_s
        now = following
        until_s = max(until_s, now.time_s + now.duration_s)
    if now is None:
        return
    if most_end_s is not None:
        until_s = min(until_s, most_end_s)
    if least_end_s is not None:
        until_s = max(until_s, least_end_s)
    # Half a picture: a container's clock may be too coarse for a duration.
    short = until_s <= now.time_s + pace.usual_s / 2 and not now.duration_s
    yield Shown(
        now.time_s, now.time_s + pace.usual_s if short or until_s <= now.time_s else until_s, now.frame, segment
    )
