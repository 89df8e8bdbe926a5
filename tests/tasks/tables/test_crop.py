"""Facts about rectangles in a frame."""

import itertools

import numpy as np
import pytest

from tasks.tables.crop import Box, covered, largest_rectangle, merged, padded, scaled

FRAME = Box(0, 0, 64, 36)


def exhaustive_largest(within: Box, avoid: list[Box]) -> int:
    """Area of the largest free rectangle, by trying all."""
    free = np.ones((within.h, within.w), bool)
    for box in avoid:
        free[box.y : box.y + box.h, box.x : box.x + box.w] = False
    best = 0
    for top, bottom in itertools.combinations(range(within.h + 1), 2):
        columns = free[top:bottom].all(axis=0)
        longest = max((len(list(run)) for clear, run in itertools.groupby(columns) if clear), default=0)
        best = max(best, longest * (bottom - top))
    return best


def test_subtitle_at_the_bottom_leaves_what_is_above_it() -> None:
    assert largest_rectangle(FRAME, [Box(10, 30, 40, 4)]) == Box(0, 0, 64, 30)


def test_logo_in_a_narrow_corner_costs_the_smaller_strip() -> None:
    assert largest_rectangle(FRAME, [Box(50, 1, 7, 4)]) == Box(0, 5, 64, 31)


def test_nothing_in_the_way_leaves_everything() -> None:
    assert largest_rectangle(FRAME, []) == FRAME
    assert largest_rectangle(FRAME, [Box(100, 100, 5, 5)]) == FRAME


def test_no_room_is_an_empty_box() -> None:
    assert largest_rectangle(FRAME, [FRAME]).area == 0


@pytest.mark.parametrize("seed", range(8))
def test_largest_rectangle_is_exact_and_free(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = Box(0, 0, 24, 18)
    boxes = [Box(*(int(v) for v in rng.integers(0, [20, 15, 9, 7]))) for _ in range(seed + 1)]
    boxes = [box.meet(frame) for box in boxes]
    found = largest_rectangle(frame, boxes)
    assert found.area == exhaustive_largest(frame, boxes)
    assert not any(found.meet(box).area for box in boxes)


def test_many_boxes_are_quick() -> None:
    rng = np.random.default_rng(0)
    boxes = [Box(int(x), int(y), 60, 20) for x, y in rng.integers(0, [1200, 700], (80, 2))]
    assert largest_rectangle(Box(0, 0, 1280, 720), boxes).area > 0


def test_covered_counts_an_overlap_once() -> None:
    assert covered([Box(0, 0, 32, 36), Box(16, 0, 16, 36)], FRAME) == 0.5
    assert covered([Box(0, 0, 32, 36)], Box(32, 0, 32, 36)) == 0


def test_merged_boxes_do_not_overlap() -> None:
    assert merged([Box(0, 0, 4, 4), Box(20, 0, 2, 2), Box(3, 3, 4, 4)]) == [Box(0, 0, 7, 7), Box(20, 0, 2, 2)]


def test_scaled_rounds_outwards_and_padded_stays_inside() -> None:
    assert scaled(Box(1, 1, 1, 1), 1.5, 1.5) == Box(1, 1, 2, 2)
    assert padded(Box(0, 30, 64, 6), 5, 5, FRAME) == Box(0, 25, 64, 11)
