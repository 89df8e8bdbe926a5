import cv2
import numpy as np
import pytest

from tasks.curation.pairs import HELD_MAX_S, Pair, Pairing, change

NOISE = 2.0  # grey levels: what coding changes in a picture that is repeated


def picture(number: int) -> np.ndarray:
    return np.full((2, 2, 3), number, np.uint8)


def pairs_of(changes: list[float], fps: float, sampled: list[int], begins: tuple[int, ...] = ()) -> list[Pair]:
    """Pairs of a source whose picture ``i`` is at ``i / fps`` and changes by ``changes[i]``."""
    pairing, found = Pairing(), []
    pairing.begin()
    for i, changed in enumerate(changes):
        if i in begins:
            pairing.begin()
        pairing.add(i / fps, changed, i in sampled, lambda i=i: picture(i))
        found += pairing.finished()
    pairing.begin()
    return found + list(pairing.finished())


def held(count: int, hold: int, jump: float = 40.0, noise: float = NOISE) -> list[float]:
    return [jump if i % hold == 0 else noise for i in range(count)]


@pytest.mark.parametrize("sampled", [12, 13, 14])
@pytest.mark.parametrize(("fps", "hold"), [(24, 2), (24, 3), (25, 3), (24, 4), (60, 6), (30, 10)])
def test_in_held_footage_a_pair_spans_whole_holds(fps, hold, sampled):
    (pair,) = pairs_of(held(60, hold), fps, [sampled])
    appeared = sampled // hold * hold
    drawings = max(1, int(np.ceil((1 / 15 - 0.005) * fps / hold)))
    assert pair.time_s == sampled / fps
    assert pair.image[0, 0, 0] == sampled
    assert pair.partner[0, 0, 0] == appeared + drawings * hold
    assert pair.gap_s == pytest.approx(drawings * hold / fps)


def test_the_first_picture_of_a_source_may_be_held():
    (pair,) = pairs_of([0.0, NOISE, NOISE, *held(30, 3)], 24, [0])
    assert (pair.partner_time_s, pair.gap_s) == pytest.approx((0.125, 0.125))


@pytest.mark.parametrize("changed", [0.0, 1.0, 3.0, 9.0, 50.0])
@pytest.mark.parametrize(("fps", "gap"), [(24, 2 / 24), (25, 2 / 25), (30, 2 / 30), (60, 4 / 60), (8, 1 / 8)])
def test_steady_footage_has_one_gap_however_slow_it_is_or_frozen(fps, gap, changed):
    found = pairs_of([changed] * 60, fps, [0, 7, 20])
    assert [pair.gap_s for pair in found] == pytest.approx([gap] * 3)
    assert [pair.partner_time_s - pair.time_s for pair in found] == pytest.approx([gap] * 3)


def test_a_frozen_picture_with_noise_is_compared_with_itself():
    changes = [0.0, 1.7, 0.0, 0.3, 1.0, 0.0] * 20
    assert all(pair.gap_s == pytest.approx(2 / 24) for pair in pairs_of(changes, 24, [0, 5, 30, 61]))


def test_a_picture_that_stands_before_a_cut_is_no_hold():
    stands = 1 + int(HELD_MAX_S * 24) + 1
    changes = [60.0] + [0.5] * stands + [60.0] + [30.0] * 10
    (pair,) = pairs_of(changes, 24, [2])
    assert pair.gap_s == pytest.approx(2 / 24)
    assert pair.partner[0, 0, 0] == 4


def test_slow_motion_between_two_cuts_keeps_its_gap():
    changes = [60.0, *[5.0, 6.0, 4.0, 7.0] * 6, 60.0, *[5.0] * 9]
    assert [pair.gap_s for pair in pairs_of(changes, 24, [0, 12])] == pytest.approx([2 / 24] * 2)


def test_no_pair_reaches_over_the_end_of_a_segment():
    first, second = pairs_of(held(40, 4), 24, [9, 21], begins=(11, 22))
    assert (first.time_s, first.partner_time_s) == (9 / 24, None)
    assert (second.time_s, second.partner) == (21 / 24, None)


def test_pairs_come_in_the_order_of_their_samples():
    found = pairs_of(held(60, 3), 24, list(range(0, 60, 2)))
    assert [pair.time_s for pair in found] == [i / 24 for i in range(0, 60, 2)]


def test_images_are_made_only_of_samples_and_partners():
    made = []
    pairing = Pairing()
    pairing.begin()
    for i in range(48):
        pairing.add(i / 24, 40.0, i in (0, 12), lambda i=i: made.append(i) or picture(i))
    assert made == [0, 2, 12, 14]


def noisy(level: float, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(int(level * 10)).normal(128, level, (*shape, 3)).clip(0, 255).astype(np.uint8)


def test_change_sees_a_small_subject_and_not_noise():
    ground = cv2.GaussianBlur(noisy(60, (144, 256)), (0, 0), 3)
    moved = ground.copy()
    moved[40:60, 100:120] = 250
    assert change(ground, ground) == 0
    assert change(ground, moved) > 20
    assert change(ground, (ground + np.random.default_rng(0).integers(-1, 2, ground.shape)).astype(np.uint8)) < 2


@pytest.mark.parametrize("shape", [(1, 1), (2, 256), (256, 2), (15, 17)])
def test_change_takes_any_size(shape):
    black = np.zeros((*shape, 3), np.uint8)
    assert change(black, black + 100) == pytest.approx(100)
