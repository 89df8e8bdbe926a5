"""Curate a folder of odd files and judge every row by what the folder's truth.json says is right.

    python -m benchmarks.cases FOLDER [--output OUT]

All files of FOLDER go through one run, as a user starts it. What no repository can store (names that are not UTF-8,
pipes, names of output folders) is made in a temporary folder and curated in runs of its own. Prints a table of the
files, why each is there, and what is wrong, and how many hold; the exit status is 1 if anything is wrong.

truth.json has ``cases`` (file name to case) and ``made_by_test`` (cases with a ``name``). A case says what is right of
all rows of its file; ``judge`` is the meaning of each of its fields.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

import pyarrow.parquet as pq

Row = dict[str, Any]
Case = Mapping[str, Any]

REPOSITORY = Path(__file__).resolve().parents[1]
# The files share content, so only copies of whole files may count as duplicates.
SETTINGS = ("--set", "dedup_sources.candidate_cosine=1")
RUN_LIMIT_S, PIPE_LIMIT_S, OUTPUT_LIMIT_S = 3600, 120, 600

TIME_TOLERANCE_S = 0.2
REACH_S = 0.5  # how far a kept clip may reach into seconds that none should show
TEXT_AREA_FOUND = 0.02
TEXT_ROWS_LEFT = 8  # pixel rows of a text that a crop may still hold

NOT_JUDGED = {"why", "frames", "kept_not_required", "tolerance_s", "name", "copy_of", "row_of_any_name"}
JUDGED = {
    *("error", "keep", "duration_s", "width", "height", "sizes", "must_equal", "same_as", "not_kept_inside"),
    *("motion_min", "not_rejected_by", "text_found", "text_rows"),
}
RUNS_OF_THEIR_OWN = {"fifo", "output"}


def judge(case: Case, rows: Sequence[Row], all_rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """What is wrong with the rows of a case's file, in words; nothing where all is as the case says.

    ``all_rows`` are the rows of every file by its name, for cases that compare two. Raises ValueError for a case with
    a field that has no meaning here.
    """
    if unknown := set(case) - JUDGED - NOT_JUDGED:
        raise ValueError(f"truth.json: no meaning is known of {', '.join(sorted(unknown))}")
    if not rows:
        return ["no row"]
    rows = sorted(rows, key=lambda row: (row["start_s"] is None, row["start_s"] or 0.0))
    wrong = [f"kept with its error: {row['error']}" for row in rows if row["error"] and row["keep"]]
    errors = [row["error"] for row in rows if row["error"]]
    expected = case.get("error", "either")
    if expected is True:
        if len(errors) < len(rows):
            wrong.append(f"{len(rows) - len(errors)} of {len(rows)} rows have no error")
        return wrong + _kept(rows)
    if expected is False:
        wrong += [f"error: {error}" for error in errors]
    if len(errors) == len(rows):
        return wrong  # the other fields speak of a file that can be used
    wrong += _judge_time(case, rows)
    wrong += _judge_picture(case, rows)
    wrong += _judge_scores(case, rows, all_rows)
    if case.get("keep") is False:
        wrong += _kept(rows)
    if case.get("keep") is True and not any(row["keep"] for row in rows):
        wrong.append(f"no row is kept: {_reasons(rows)}")
    return wrong


def _kept(rows: Sequence[Row]) -> list[str]:
    return [f"kept: {_span(row)}" for row in rows if row["keep"]]


def _span(row: Row) -> str:
    return "no times" if row["start_s"] is None else f"{row['start_s']:.2f} to {row['end_s']:.2f} s"


def _reasons(rows: Sequence[Row]) -> str:
    return ", ".join(sorted({reason for row in rows for reason in row["rejected_by"] or []}))


def _judge_time(case: Case, rows: Sequence[Row]) -> list[str]:
    wrong = []
    if "duration_s" in case:
        starts = [row["start_s"] for row in rows if row["start_s"] is not None]
        ends = [row["end_s"] for row in rows if row["end_s"] is not None]
        lasts = max(ends) - min(starts) if starts and ends else None
        if lasts is None or not abs(lasts - case["duration_s"]) <= case.get("tolerance_s", TIME_TOLERANCE_S):
            wrong.append(f"lasts {'no time' if lasts is None else f'{lasts:.2f} s'}, not {case['duration_s']:.2f} s")
    if "not_kept_inside" in case:
        first, last = case["not_kept_inside"]
        kept = [row for row in rows if row["keep"]]
        inside = [row for row in kept if min(row["end_s"], last) - max(row["start_s"], first) > REACH_S]
        wrong += [f"{problem}, inside {first} to {last} s" for problem in _kept(inside)]
    return wrong


def _judge_picture(case: Case, rows: Sequence[Row]) -> list[str]:
    wrong = []
    for column in ("width", "height"):
        if column in case:
            wrong += _unequal(rows, column, case[column], 0)
    if "sizes" in case:
        found = [size for size, _ in groupby([row["width"], row["height"]] for row in rows)]
        if found != case["sizes"]:
            wrong.append(f"sizes {found}, not {case['sizes']}")
    for rule in case.get("must_equal", []):
        wrong += _unequal(rows, rule["column"], rule["value"], rule.get("tolerance", 0))
    if case.get("text_found"):
        areas = [row["text_area"] for row in rows if row["text_area"] is not None]
        if not areas or not min(areas) >= TEXT_AREA_FOUND:
            wrong.append(f"text_area {min(areas, default=None)}, below {TEXT_AREA_FOUND}")
    if "text_rows" in case:
        first, last = case["text_rows"]
        for row in rows:
            held = min(row["crop_y"] + row["crop_h"], last) - max(row["crop_y"], first) if row["keep"] else 0
            if held > TEXT_ROWS_LEFT:
                wrong.append(f"kept with {held} rows of the text: {_span(row)}")
    return wrong


def _unequal(rows: Sequence[Row], column: str, value: Any, tolerance: float) -> list[str]:
    def equal(found: Any) -> bool:
        if isinstance(found, int | float) and isinstance(value, int | float):
            return abs(found - value) <= tolerance
        return bool(found == value)

    found = [row[column] for row in rows]
    odd = sorted({str(one) for one in found if not equal(one)})
    return [f"{column} {' and '.join(odd)}, not {value}"] if odd else []


def _median(rows: Iterable[Row], column: str) -> float | None:
    """Median of what was measured; None where nothing was."""
    values = [row[column] for row in rows if row[column] is not None]
    return statistics.median(values) if values else None


def _judge_scores(case: Case, rows: Sequence[Row], all_rows: Mapping[str, Sequence[Row]]) -> list[str]:
    wrong = []
    if "motion_min" in case:
        motion = _median(rows, "motion")
        if motion is None or not motion >= case["motion_min"]:
            wrong.append(f"motion {motion}, below {case['motion_min']}")
    reasons = {reason for row in rows for reason in row["rejected_by"] or []}
    wrong += [f"rejected by {reason}" for reason in case.get("not_rejected_by", []) if reason in reasons]
    if same := case.get("same_as"):
        for column in same["columns"]:
            ours, theirs = (_median(some, column) for some in (rows, all_rows.get(same["file"], [])))
            if ours is None or theirs is None or not abs(ours - theirs) <= same["within"] * abs(theirs):
                wrong.append(f"{column} {ours}, not within {same['within']:.0%} of {theirs} of {same['file']}")
    return wrong


@dataclass(frozen=True)
class Run:
    """How a run of curation ended. ``status`` is its exit status, or None where it was ended at its limit of time."""

    status: int | None
    words: str


def curate(source: Path, output: Path, limit_s: float, folder: Path) -> Run:
    """Curate ``source`` in a process of its own that starts in ``folder``, as a user would."""
    command = [sys.executable, "-m", "flows.cli", str(source), str(output), *SETTINGS]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        words = process.communicate(timeout=limit_s)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return Run(None, process.communicate()[1].decode(errors="replace"))
    return Run(process.returncode, words.decode(errors="replace"))


def rows_of(output: Path) -> list[Row]:
    """All rows of OUT/clips; none where a run has not come so far."""
    return [row for table in sorted((output / "clips").glob("*.parquet")) for row in pq.read_table(table).to_pylist()]


def run_problems(run: Run, limit_s: float) -> list[str]:
    """What is wrong with how a run ended: it may keep nothing, but it must not stop before its end."""
    if run.status is None:
        return [f"the run had not ended after {limit_s:.0f} s"]
    if run.status not in (0, 1):
        return [f"the run ended with status {run.status}: {last_line(run.words)}"]
    return []


def last_line(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1] if lines else "without a word"


def judge_folder(
    cases: Mapping[str, Case], source: Path, output: Path, places: Mapping[str, Path]
) -> dict[str, list[str]]:
    """Curate ``source`` in one run and judge its cases; ``places`` says where each file is.

    A case whose row may have any name is alone in its folder, which then tells its rows.
    """
    run = curate(source, output, RUN_LIMIT_S, source.parent)
    found = rows_of(output)
    by_name = {
        name: [row for row in found if belongs(row["source_uri"], places[name], bool(case.get("row_of_any_name")))]
        for name, case in cases.items()
    }
    wrong = {name: judge(case, by_name[name], by_name) for name, case in cases.items()}
    if problems := run_problems(run, RUN_LIMIT_S):
        wrong = {name: problems + own for name, own in wrong.items()}
    elif not found:
        wrong = {name: [f"no row: {last_line(run.words)}"] for name in cases}
    return wrong


def belongs(source_uri: str, place: Path, any_name: bool) -> bool:
    return f"/{place.parent.name}/" in source_uri if any_name else source_uri == str(place)


def judge_pipe(name: str, ordinary: Path, scratch: Path) -> list[str]:
    """A named pipe that nobody writes to lies beside an ordinary file: the run ends, and the file has its row."""
    source, output = scratch / "pipe", scratch / "pipe-out"
    source.mkdir()
    os.mkfifo(source / name)
    beside = source / f"ordinary{ordinary.suffix}"
    shutil.copyfile(ordinary, beside)
    run = curate(source, output, PIPE_LIMIT_S, scratch)
    wrong = run_problems(run, PIPE_LIMIT_S)
    rows = rows_of(output)
    wrong += judge({"error": False}, [row for row in rows if row["source_uri"] == str(beside)], {})
    pipe = [row for row in rows if row["source_uri"] != str(beside)]
    return wrong + (judge({"error": True}, pipe, {}) if pipe else [])


def judge_output(name: str, ordinary: Path, scratch: Path) -> list[str]:
    """A name of an output folder: the run works, or ends with exit status 2 and the reason before it decodes."""
    folder = scratch / "output"
    source = folder / "source"
    source.mkdir(parents=True)
    shutil.copyfile(ordinary, source / f"ordinary{ordinary.suffix}")
    run = curate(source, folder / name, OUTPUT_LIMIT_S, folder)
    strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in ("source", name))
    wrong = [f"made {stranger!r} beside the output" for stranger in strangers]
    if run.status == 2:
        if not run.words.strip():
            wrong.append("status 2 without a reason")
        if any(folder.rglob("samples.parquet")):
            wrong.append("status 2 after it had decoded")
        return wrong
    return wrong + run_problems(run, OUTPUT_LIMIT_S) + judge({"error": False}, rows_of(folder / name), {})


def ordinary_file(folder: Path, cases: Mapping[str, Case]) -> Path:
    """A file that is like any other, to be beside what is not: the smallest video that must have no error."""
    good = [folder / name for name, case in cases.items() if case.get("error") is False and case.get("duration_s")]
    if not good:
        raise SystemExit(f"{folder}/truth.json has no video that must have no error")
    return min(good, key=lambda path: path.stat().st_size)


def judge_made(made: Sequence[Case], folder: Path, cases: Mapping[str, Case], scratch: Path) -> dict[str, list[str]]:
    """Make and judge what no repository can store."""
    wrong: dict[str, list[str]] = {}
    files = {case["name"]: case for case in made if "copy_of" in case}
    places = {}
    for number, (name, case) in enumerate(files.items()):
        places[name] = scratch / "made" / (f"alone-{number}" if case.get("row_of_any_name") else "names") / name
        places[name].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / case["copy_of"], places[name])
    if files:
        wrong |= judge_folder(files, scratch / "made", scratch / "made-out", places)
    for number, case in enumerate(case for case in made if RUNS_OF_THEIR_OWN & case.keys()):
        own = scratch / f"own-{number}"
        own.mkdir()
        judge_own = judge_pipe if case.get("fifo") else judge_output
        wrong[case["name"]] = judge_own(case["name"], ordinary_file(folder, cases), own)
    return wrong


def as_table(cases: Mapping[str, Case], wrong: Mapping[str, Sequence[str]]) -> str:
    """One line a file, what is wrong below it, and the count."""
    shown = {name: name.encode(errors="backslashreplace").decode() for name in cases}
    width = max(map(len, shown.values()))
    lines = []
    for name, case in cases.items():
        lines.append(f"{'WRONG' if wrong[name] else 'holds'}  {shown[name]:{width}}  {case['why']}")
        lines += [f"{'':{width + 9}}- {problem}" for problem in wrong[name]]
    holding = sum(not problems for problems in wrong.values())
    return "\n".join([*lines, f"\n{holding} of {len(cases)} files hold"]).encode(errors="backslashreplace").decode()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, help="an empty folder that keeps the runs' results")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    truth = json.loads((folder / "truth.json").read_text())
    cases, made = truth["cases"], truth.get("made_by_test", [])

    with ExitStack() as stack:
        scratch = (options.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        if any(scratch.iterdir()):
            parser.error(f"{scratch} is not empty")
        if "PREFECT_API_URL" not in os.environ:
            from prefect.settings import PREFECT_API_URL
            from prefect.testing.utilities import prefect_test_harness

            # One server for all runs; each process would start its own.
            stack.enter_context(prefect_test_harness(server_startup_timeout=120))
            stack.callback(os.environ.pop, "PREFECT_API_URL")
            os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value()
        places = {name: folder / name for name in cases}
        wrong = judge_folder(cases, folder, scratch / "out", places)
        wrong |= judge_made(made, folder, cases, scratch)
    everything = cases | {case["name"]: case for case in made}
    print(as_table(everything, wrong))
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
