"""Ranks as real processes: what a launcher passes on, whom it blames, how it stops, and that nobody is left behind."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

from training.checkpoint.checkpoints import FACTS
from training.launch.failures import RankFailed
from training.launch.listener import Listener, write_run
from training.launch.local import launch
from training.recipe import load_recipe
from training.run import TrainingRun

ROOT = Path(__file__).parents[3]

# Stands for training.main: the same files, lines and exit statuses; how it ends is in the run's `checkpoint`.
STAND_IN = """
import faulthandler, json, os, signal, sys, time, traceback
from datetime import timedelta
from pathlib import Path

run = json.loads(Path(sys.argv[1]).read_text())
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
out, ending = Path(run["output"]), run["checkpoint"]
(out / f"pid-{rank}").write_text(f"{os.getpid()} {os.getppid()}")
starts = out / f"starts-{rank}"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
print(f"{ending} of {world}", flush=True)

def report(problem, retry=True):
    (out / "errors").mkdir(exist_ok=True)
    (out / "errors" / f"rank-{rank:05d}.json").write_text(json.dumps({
        "rank": rank, "time": time.time(), "kind": type(problem).__name__, "message": str(problem),
        "traceback": traceback.format_exc(), "retry": retry}))

def metrics(step):
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "steps": 4, "loss": 1 / step}) + "\\n")

def all_reduce():
    import torch
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    value = torch.ones(4)
    dist.all_reduce(value)
    print("sum", int(value[0]), flush=True)
    return lambda: dist.all_reduce(value)

stop = []
if ending == "deaf" or ending == "half" and rank == 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))

def wait():
    print("waiting", flush=True)
    while not stop:
        time.sleep(0.05)
    if ending == "half":
        time.sleep(2)
    (out / f"saved-{rank}").write_text("x")
    if rank == 0:
        print("stopped at step 3 of 4", flush=True)
    sys.exit(0)

try:
    if ending == "done":
        metrics(rank + 1) if rank == 0 else None
        print("to stderr", file=sys.stderr)
    elif ending == "once":
        if len(starts.read_text()) == 1 and rank == 1:
            raise OSError("the disk is gone")
        if len(starts.read_text()) == 1:
            wait()
    elif ending == "slow":  # saves one checkpoint more in each attempt
        step = len(starts.read_text())
        if step < 4 and rank == 0:
            checkpoint = out / "checkpoints" / f"step-{step:08d}"
            checkpoint.mkdir(parents=True)
            (checkpoint / os.environ["FACTS"]).write_text("{}")
            raise OSError("the disk is gone")
    elif ending in ("wait", "deaf"):
        wait()
    elif rank == 1 and ending == "never":
        raise ArithmeticError("the loss is no number")
    elif rank == 1 and ending == "segfault":
        faulthandler.enable()
        faulthandler._sigsegv()
    elif rank == 1 and ending == "exit":
        os._exit(3)
    elif ending in ("raise", "kill"):
        again = all_reduce()
        if rank == 1 and ending == "raise":
            time.sleep(0.5)
            raise ValueError("sample 17 has no frames")
        if rank == 1 and ending == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        again()
    else:
        wait()
except Exception as problem:
    report(problem, retry=ending != "never")
    traceback.print_exc()
    sys.exit(2 if ending == "never" else 1)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")

    def make(ending: str) -> TrainingRun:
        output = tmp_path / "out"
        output.mkdir()
        return TrainingRun(recipe=load_recipe("stage1"), manifests=("m",), checkpoint=ending, output=str(output))

    return make


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids(out: Path) -> list[int]:
    """The process numbers of the ranks, and of torchrun."""
    return [int(pid) for path in out.glob("pid-*") for pid in path.read_text().split()]


def no_one_left(out: Path) -> bool:
    """Whether ranks and torchrun are gone, at once or once their grace is over."""
    for _ in range(200):
        if not any(alive(pid) for pid in pids(out)):
            return len(pids(out)) > 0
        time.sleep(0.1)
    return False


def starts(out: Path) -> list[str]:
    return [path.read_text() for path in sorted(out.glob("starts-*"))]


def failed(run: TrainingRun, **options) -> tuple[RankFailed, list[str]]:
    lines: list[str] = []
    with pytest.raises(RankFailed) as failure:
        launch(run, 2, Listener(on_line=lines.append), grace_s=5, module="stand_in", **options)
    assert no_one_left(run.folder)
    return failure.value, lines


def test_a_run_passes_on_lines_with_their_rank_and_metrics(stand_in):
    run, lines, metrics = stand_in("done"), [], []
    outcome = launch(run, 2, Listener(lines.append, metrics.append), module="stand_in")
    assert (outcome.stopped, outcome.restarts) == (None, 0)
    assert {"[rank 0] done of 2", "[rank 1] done of 2", "[rank 1] to stderr"} <= set(lines)
    assert metrics == [{"step": 1, "steps": 4, "loss": 1.0}]
    assert TrainingRun.model_validate_json((run.folder / "training.json").read_text()) == run


def test_the_rank_that_raised_is_blamed_not_those_that_lost_it(stand_in):
    failure, lines = failed(stand_in("raise"))
    message = str(failure)
    assert message.startswith("rank 1: ValueError: sample 17 has no frames\n\n")
    assert message.endswith("ValueError: sample 17 has no frames") and "stand_in.py" in message
    assert failure.retry and failure.rank == 1
    assert "[rank 0] sum 2" in lines
    assert str(pickle.loads(pickle.dumps(failure))) == message


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("kill", "rank 1: killed by SIGKILL, as the kernel does where memory is short"),
        ("exit", "rank 1: ended with exit status 3"),
        ("segfault", "rank 1: killed by SIGSEGV"),
    ],
)
def test_a_rank_that_died_without_a_word_is_blamed(stand_in, ending, words):
    failure, _ = failed(stand_in(ending))
    assert failure.headline == words and failure.retry
    assert ("Fatal Python error: Segmentation fault" in str(failure)) == (ending == "segfault")


def test_what_would_fail_again_is_not_started_again(stand_in):
    run = stand_in("never")
    failure, _ = failed(run, restarts=3)
    assert failure.headline == "rank 1: ArithmeticError: the loss is no number" and not failure.retry
    assert starts(run.folder) == ["x", "x"]


def test_after_a_failure_it_starts_again(stand_in):
    run, lines = stand_in("once"), []
    outcome = launch(run, 2, Listener(on_line=lines.append), grace_s=5, restarts=1, module="stand_in")
    assert (outcome.stopped, outcome.restarts) == (None, 1)
    assert starts(run.folder) == ["xx", "xx"]
    assert "rank 1: OSError: the disk is gone; starting again from the start, 1 of 1 in a row" in lines
    assert not list(run.folder.glob("errors/*"))


def test_restarts_are_counted_since_the_last_checkpoint(stand_in, monkeypatch):
    monkeypatch.setenv("FACTS", FACTS)
    outcome = launch(stand_in("slow"), 2, grace_s=5, restarts=1, module="stand_in")
    assert (outcome.stopped, outcome.restarts) == (None, 3)


def test_ranks_that_are_stopped_save_first(stand_in):
    run, stop, lines = stand_in("wait"), Event(), []

    def heard(line: str) -> None:
        lines.append(line)
        if sum("waiting" in line for line in lines) == 2:
            stop.set()

    outcome = launch(run, 2, Listener(on_line=heard, stop=stop), restarts=2, module="stand_in")
    assert outcome.stopped == "stopped at step 3 of 4"
    assert len(list(run.folder.glob("saved-*"))) == 2 and starts(run.folder) == ["x", "x"]
    assert no_one_left(run.folder)


def test_ranks_that_do_not_stop_are_killed(stand_in):
    run, stop = stand_in("deaf"), Event()
    listener = Listener(on_line=lambda line: stop.set() if "[rank 1] waiting" in line else None, stop=stop)
    outcome = launch(run, 2, listener, grace_s=1, module="stand_in")
    assert outcome.stopped == "stopped; no rank said at which step"
    assert no_one_left(run.folder)


def test_an_error_of_a_listener_stops_the_ranks(stand_in):
    run = stand_in("wait")

    def on_line(line: str) -> None:
        heard.append(line)
        if {"[rank 0] waiting", "[rank 1] waiting"} <= set(heard):
            raise LookupError("nobody listens")

    heard: list[str] = []
    with pytest.raises(LookupError):
        launch(run, 2, Listener(on_line), module="stand_in")
    assert no_one_left(run.folder)
    assert "[rank 0] stopped at step 3 of 4" in heard and (run.folder / "saved-0").exists()


PROGRAM = """
import sys
from pathlib import Path
from training.launch.local import Listener, TrainingRun, launch

listener, waiting = Listener(), []

def on_line(line):
    print(line, flush=True)
    if "waiting" in line:
        waiting.append(line)
    if len(waiting) == 2 and sys.argv[2] == "stopping":
        listener.stop.set()

listener.on_line = on_line
launch(TrainingRun.model_validate_json(Path(sys.argv[1]).read_text()), 2, listener, grace_s=5, module="stand_in")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's end on Linux alone")
@pytest.mark.parametrize(("when", "line"), [("running", "waiting"), ("stopping", "closing signal SIGTERM")])
def test_nobody_is_left_where_the_launcher_is_killed_and_who_can_saves(stand_in, when, line):
    run = stand_in("half")  # rank 0 takes two seconds to save, and rank 1 does not hear SIGTERM
    command = [sys.executable, "-c", PROGRAM, str(write_run(run)), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        of_ranks = (text for text in launcher.stdout if line in text)
        assert next(of_ranks) and next(of_ranks)
        if when == "stopping":
            for _ in range(3):  # as the kernel may, for a parent of many threads
                os.kill(pids(run.folder)[1], signal.SIGTERM)
                time.sleep(0.2)
        launcher.kill()
    assert no_one_left(run.folder)
    assert [path.name for path in run.folder.glob("saved-*")] == ["saved-0"]
