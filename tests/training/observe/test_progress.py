"""Files that grow, metrics that a resume cuts off, and the picture of the loss."""

import json
import math
from xml.etree import ElementTree

import pytest

from training.observe.loss_curve import LEFT, POINTS, RIGHT, WIDTH, loss_curve, number, smoothed, thinned, ticks
from training.observe.progress import History, Lines, as_table

LINE = {
    "step": 40,
    "steps": 200,
    "loss": 0.51239,
    "loss_by_band": {"0.9-1.0": 0.7, "0.0-0.1": 0.25},
    "loss_by_bucket": {"16x9 5 s": 0.5},
    "gradient_norm": 1.25,
    "learning_rate": 1e-4,
    "samples": 64,
    "tokens_per_s": 12345.6,
    "mfu": None,
    "data_wait": 0.031,
    "step_s": 0.5,
    "time": 0.0,
}


def test_lines_come_once_and_whole(tmp_path):
    lines = Lines(tmp_path / "log")
    assert list(lines.new()) == []
    with (tmp_path / "log").open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert list(lines.new()) == ["one"]
        file.write("o\nthree\n")
        file.flush()
        assert list(lines.new()) == ["two", "three"]
    assert list(lines.new()) == []


@pytest.mark.parametrize("in_place", [True, False])
def test_after_a_file_was_cut_off_all_of_it_comes_again(tmp_path, in_place):
    path = tmp_path / "metrics.jsonl"
    path.write_text("a1\na2\na3\n")
    lines = Lines(path)
    assert list(lines.new()) == ["a1", "a2", "a3"]
    if not in_place:
        path.rename(tmp_path / "old")
    path.write_text("a1\nb2\nb3\nb4\n")  # longer than before: its size says nothing
    assert list(lines.new()) == ["a1", "b2", "b3", "b4"]
    path.write_text("a1\n")
    assert list(lines.new()) == ["a1"]


def test_a_step_that_is_trained_again_replaces_what_came_after_it():
    history = History()
    for step, loss in [(10, 1.0), (20, 0.9), (30, 0.8), (20, 0.7)]:
        history.add({"step": step, "loss": loss})
    assert history.lines == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.7}]


def test_the_table_has_every_number_as_people_read_it():
    rows = {row["metric"]: row["value"] for row in as_table(LINE)}
    assert rows["step"] == "40 of 200" and rows["loss"] == "0.5124"
    assert rows["tokens/s"] == "12,346" and rows["MFU"] == "unknown" and rows["time spent waiting for data"] == "3.1%"
    assert list(rows)[-3:] == ["loss, noise level 0.0-0.1", "loss, noise level 0.9-1.0", "loss, bucket 16x9 5 s"]
    assert json.dumps(as_table(LINE))


def test_ticks_are_round_and_enclose_what_they_measure():
    for low, high in [(0, 200), (0.031, 0.047), (0, 60000), (2.5, 2.5), (0, 0), (-3e-7, 1e-7)]:
        marks = ticks(low, high)
        assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 9
        assert len({number(mark) for mark in marks}) == len(marks)
    assert ticks(0, 200) == [0, 50, 100, 150, 200]


def test_the_smoothed_line_keeps_a_constant_and_lags_behind_a_step():
    assert [value for _, value in smoothed([(s, 2.0) for s in range(100)])] == pytest.approx([2.0] * 100)
    jump = smoothed([(s, float(s >= 50)) for s in range(100)])
    assert jump[49][1] == 0 and 0 < jump[50][1] < 0.5 and jump[-1][1] > 0.9


def test_many_points_are_averaged_to_few():
    points = [(s, float(s)) for s in range(10 * POINTS + 1)]
    few = thinned(points)
    assert len(few) <= POINTS and few[0] == (5.0, 5.0)


def test_the_curve_is_an_svg_whose_line_goes_from_left_to_right():
    steps = list(range(10, 1010, 10))
    losses = [math.exp(-step / 400) for step in steps[:-1]] + [math.nan]
    svg = ElementTree.fromstring(loss_curve(steps, losses, "a <b> & c"))
    kind = "{http://www.w3.org/2000/svg}"
    assert "a <b> & c" in [text.text for text in svg.iter(f"{kind}text")]
    assert {"0", "200", "1k"} <= {text.text for text in svg.iter(f"{kind}text")}
    raw, smooth = (line.get("points").split() for line in svg.iter(f"{kind}polyline"))
    assert len(raw) == len(smooth) == 99
    xs = [float(point.split(",")[0]) for point in raw]
    assert xs == sorted(xs) and xs[0] > LEFT and xs[-1] < WIDTH - RIGHT
    ys = [float(point.split(",")[1]) for point in raw]
    assert ys == sorted(ys)  # a loss that falls goes down the page


def test_a_run_without_a_loss_is_an_empty_plot():
    assert "<svg" in loss_curve([10], [math.nan], "diverged")
