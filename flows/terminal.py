"""What a curation shows in a terminal: a bar for each step, or a line for each finished step where nobody watches."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from flows.progress import Display, Level, shown_on


class _Rate(ProgressColumn):
    """Sources a second, of late while a step works, and over all once it has ended."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.1f}/s" if rate < 100 else f"{rate:,.0f}/s", style="dim")


class Bars:
    """A bar a step: sources done, of all; sources a second; time left; errors so far."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[notes]}", style="red"),
            console=console,
        )

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, levels: Sequence[Level]) -> None:
        for number, level in enumerate(levels):
            if number == len(self._bars.task_ids):
                self._bars.add_task(name_of(levels, number), start=False, total=level.sources, notes="")
            task = self._bars.task_ids[number]
            if level.began_s is not None and self._bars.tasks[number].start_time is None:
                self._bars.start_task(task)
            self._bars.update(task, completed=level.done, notes=notes_of(level))


class Lines:
    """A line for each step that has ended: for files and pipes."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._told = file, set[int]()

    def show(self, levels: Sequence[Level]) -> None:
        for number, level in enumerate(levels):
            if level.ended_s is not None and number not in self._told:
                self._told.add(number)
                print(line_of(name_of(levels, number), level), file=self._file, flush=True)


def name_of(levels: Sequence[Level], number: int) -> str:
    """A step's name, with a number from the second time on that it comes."""
    times = [level.step for level in levels[: number + 1]].count(levels[number].step)
    return levels[number].step + (f" {times}" if times > 1 else "")


def notes_of(level: Level) -> str:
    """What went wrong in a step: ``3 errors, 1 shard failed``."""
    counts = [(level.errors, "error", ""), (level.failed, "shard", " failed")]
    return ", ".join(f"{n:,} {what}{'s' if n != 1 else ''}{rest}" for n, what, rest in counts if n)


def line_of(name: str, level: Level) -> str:
    """A finished step in words: ``scan: 8 sources, 1 error, done after 12.3 s``. The time is that of the run so far."""
    counts = [f"{level.sources:,} source{'s' if level.sources != 1 else ''}", notes_of(level)]
    return f"{name}: {', '.join(filter(None, counts))}, done after {level.ended_s or 0.0:.1f} s"


@contextmanager
def progress_shown(file: IO[str] = sys.stderr) -> Iterator[None]:
    """Show the progress of the flow that is called inside: bars on a terminal, else lines."""
    console = Console(file=file)
    display: Display
    if console.is_terminal:
        with Bars(console) as display, shown_on(display):
            yield
    else:
        with shown_on(Lines(file)):
            yield
