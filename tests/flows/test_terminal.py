from io import StringIO

from rich.console import Console

from flows.progress import Level
from flows.terminal import Bars, Lines


def test_a_terminal_shows_a_bar_for_each_step_with_errors_so_far():
    file = StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=120)
    with Bars(console) as bars:
        bars.show([Level("scan", 8, done=3, errors=1, began_s=0.0), Level("embed", 8)])
    shown = file.getvalue()
    assert "3/8" in shown
    assert "0/8" in shown
    assert "1 error" in shown


def test_a_pipe_gets_one_line_for_each_step_when_it_has_ended():
    file = StringIO()
    lines = Lines(file)
    scan = Level("scan", 8, done=7)
    lines.show([scan])
    assert file.getvalue() == ""
    scan.done, scan.errors, scan.failed, scan.ended_s = 8, 2, 1, 12.34
    lines.show([scan, Level("measure", 1, done=1, ended_s=13.0)])
    lines.show([scan, Level("measure", 1, done=1, ended_s=13.0), Level("measure", 1, done=1, ended_s=14.0)])
    assert file.getvalue().splitlines() == [
        "scan: 8 sources, 2 errors, 1 shard failed, done after 12.3 s",
        "measure: 1 source, done after 13.0 s",
        "measure 2: 1 source, done after 14.0 s",
    ]
