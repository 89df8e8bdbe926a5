"""An order of n things that is random, whole, and asked for place by place."""

import numpy as np
import pytest

from training.data.permutation import permuted


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 255, 1000, 65_537])
def test_every_thing_has_one_place(size: int) -> None:
    for key in (0, 1, 2**64 - 1):
        order = permuted(np.arange(size), size, key)
        assert np.array_equal(np.sort(order), np.arange(size))


def test_a_place_does_not_depend_on_which_others_are_asked_for() -> None:
    whole = permuted(np.arange(1000), 1000, 7)
    places = np.array([999, 0, 0, 412])
    assert np.array_equal(permuted(places, 1000, 7), whole[places])


def test_a_place_beyond_four_thousand_million_is_found() -> None:
    places = np.arange(10) + 9_999_999_990
    found = permuted(places, 10_000_000_000, 3)
    assert len(set(found.tolist())) == 10 and found.min() >= 0 and found.max() < 10_000_000_000


@pytest.mark.parametrize("size", [3, 10, 50])
def test_every_thing_is_as_often_in_every_place(size: int) -> None:
    """Chi-squared with (size - 1)^2 degrees of freedom, four deviations above its mean at most."""
    orders = 4000
    seen = np.zeros((size, size))
    for key in range(orders):
        seen[np.arange(size), permuted(np.arange(size), size, key)] += 1
    expected, freedom = orders / size, (size - 1) ** 2
    assert ((seen - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


def test_all_orders_of_four_things_come() -> None:
    assert len({tuple(permuted(np.arange(4), 4, key).tolist()) for key in range(1000)}) == 24


def test_neighbours_do_not_stay_together() -> None:
    order = permuted(np.arange(10_000), 10_000, 11)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert np.count_nonzero(np.abs(np.diff(order)) == 1) < 20
