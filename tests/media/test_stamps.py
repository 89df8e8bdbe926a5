import pytest

from media.stamps import BadSource, Pace, Shown, Stamped, WrongStamps, in_order, on_screen


def show(
    stamps: list[float], promised_end_s: float | None = None, lasts_s: float = 0.0, sizes: list[int] | None = None
) -> tuple[list[Shown], int]:
    """What is shown of pictures with these stamps, whose frames are their numbers, and how many stamps were wrong."""
    pace, wrong = Pace(1 / 25), WrongStamps()
    widths = sizes or [64] * len(stamps)
    pictures = (
        Stamped(time_s, lasts_s, (width, 48), i) for i, (time_s, width) in enumerate(zip(stamps, widths, strict=True))
    )
    return list(on_screen(in_order(pictures, pace, wrong, promised_end_s), pace, None, promised_end_s)), wrong.count


def regular(count: int, start_s: float = 0.0, fps: float = 10.0) -> list[float]:
    return [start_s + i / fps for i in range(count)]


def test_a_picture_ends_where_the_next_begins() -> None:
    shown, wrong = show([0.5, 0.6, 0.8, 0.9, 1.4])
    assert [s.time_s for s in shown] == [0.5, 0.6, 0.8, 0.9, 1.4]
    assert [s.end_s for s in shown[:-1]] == [0.6, 0.8, 0.9, 1.4]
    assert {s.segment for s in shown} == {0}
    assert wrong == 0


@pytest.mark.parametrize("number", [1, 7, 25, 49])
@pytest.mark.parametrize("stamp", [77.0, 5000.0])
def test_one_stamp_far_ahead_moves_nothing_but_itself(number: int, stamp: float) -> None:
    stamps = regular(50)
    stamps[number] = stamp
    shown, wrong = show(stamps, promised_end_s=5.0)
    assert [s.frame for s in shown] == list(range(50))
    assert [s.time_s for s in shown] == pytest.approx(regular(50), abs=0.06)
    assert shown[-1].end_s == pytest.approx(5.0)
    assert wrong == 1


def test_a_first_picture_stamped_far_ahead_has_no_time() -> None:
    shown, wrong = show([90.0, *regular(20, 0.1)])
    assert [s.frame for s in shown] == list(range(1, 21))
    assert wrong == 1


@pytest.mark.parametrize("number", [10, 25, 49])
def test_one_stamp_far_behind_moves_nothing_but_itself(number: int) -> None:
    stamps = regular(50, start_s=2.0)
    stamps[number] = 2.05
    shown, wrong = show(stamps)
    assert [s.frame for s in shown] == list(range(50))
    assert [s.time_s for s in shown] == pytest.approx(regular(50, start_s=2.0), abs=0.06)
    assert wrong == 1


def test_wrong_stamps_here_and_there_are_passed_over_one_by_one() -> None:
    stamps = regular(60)
    stamps[10], stamps[20], stamps[40] = 300.0, 0.3, 41.0
    shown, wrong = show(stamps)
    assert [s.frame for s in shown] == list(range(60))
    assert {s.segment for s in shown} == {0}
    assert wrong == 3


def test_stamps_a_picture_or_two_out_of_order_are_put_right() -> None:
    stamps = regular(30)
    stamps[10], stamps[11] = stamps[11], stamps[10]
    stamps[20] = stamps[21]
    shown, wrong = show(stamps)
    assert [s.frame for s in shown] == list(range(30))
    assert all(s.time_s < s.end_s for s in shown)
    assert [s.time_s for s in shown] == pytest.approx(regular(30), abs=0.11)
    assert wrong == 0


@pytest.mark.parametrize("second", [0.0, 1.0, 2.5])
def test_stamps_that_go_back_for_good_are_an_error_that_says_where(second: float) -> None:
    with pytest.raises(BadSource, match=r"start again at 3\.0 s.*ffmpeg -i"):
        show(regular(30) + regular(20, second))


def test_a_hole_ends_the_picture_before_it_after_the_usual_time() -> None:
    shown, _ = show(regular(20) + regular(20, 31.0))
    assert shown[19].end_s == pytest.approx(2.0)
    assert shown[20].time_s == 31.0
    assert [s.segment for s in shown] == [0] * 20 + [1] * 20


@pytest.mark.parametrize(("gap_s", "segments"), [(0.99, 1), (1.001, 1), (1.1, 2)])
def test_a_hole_is_more_than_about_a_second(gap_s: float, segments: int) -> None:
    shown, _ = show([*regular(20), *regular(20, 1.9 + gap_s)])
    assert shown[-1].segment == segments - 1


def test_a_last_picture_is_judged_by_the_promise_or_by_being_far_beyond_all_before() -> None:
    assert show([*regular(30), 400.0])[0][-1].time_s == pytest.approx(3.0)
    assert show([*regular(30), 8.0], promised_end_s=3.1)[0][-1].time_s == pytest.approx(3.0)
    assert show([*regular(30), 8.0], promised_end_s=8.1)[0][-1].time_s == 8.0
    assert show([*regular(30), 8.0])[0][-1].time_s == 8.0


def test_slides_are_segments_of_one_picture() -> None:
    shown, _ = show([0.0, 10.0, 20.0], lasts_s=10.0)
    assert [s.segment for s in shown] == [0, 1, 2]
    assert [s.end_s - s.time_s <= 1.0 for s in shown] == [True, True, False]
    assert shown[-1].end_s == 30.0


def test_another_size_begins_a_segment_at_once() -> None:
    shown, _ = show(regular(20), sizes=[64] * 8 + [80] * 12)
    assert [s.segment for s in shown] == [0] * 8 + [1] * 12
    assert shown[7].end_s == shown[8].time_s


def test_the_last_picture_never_outlasts_the_promise() -> None:
    assert show(regular(20), promised_end_s=2.6, lasts_s=5.0)[0][-1].end_s == pytest.approx(2.6)
    assert show(regular(20), lasts_s=5.0)[0][-1].end_s == pytest.approx(6.9)
    assert show(regular(20))[0][-1].end_s == pytest.approx(2.0)


def test_nothing_and_one_picture() -> None:
    assert show([]) == ([], 0)
    (only,), _ = show([3.0])
    assert (only.time_s, only.end_s) == (3.0, 3.0 + 1 / 25)
