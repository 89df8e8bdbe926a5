"""Ranks as workers of Ray Train, on a cluster of two CPUs on this machine."""

import sys
from pathlib import Path
from threading import Event

import pytest

from training.launch.failures import RankFailed
from training.launch.listener import Listener
from training.launch.ray import connected, launch_on_ray
from training.recipe import load_recipe
from training.run import TrainingRun

ROOT = Path(__file__).parents[3]

# Stands for training.main.train_run; how it ends is in the run's `checkpoint`.
STAND_IN = """
import json, os, signal, time
import torch
import torch.distributed as dist

def train(run, stop_asked):
    rank = int(os.environ["RANK"])
    start = run.folder / f"starts-{rank}"
    start.write_text(start.read_text() + "x" if start.exists() else "x")
    value = torch.ones(4)
    dist.all_reduce(value)
    print("sum", int(value[0]))
    if rank == 0:
        line = {"step": 1, "steps": run.recipe.steps, "loss": 1.0}
        (run.folder / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
    if run.checkpoint == "fail" and rank == 1:
        time.sleep(1)
        raise ValueError("sample 17 has no frames")
    if run.checkpoint == "kill":
        if rank == 1 and start.read_text() == "x":
            os.kill(os.getpid(), signal.SIGKILL)
        while start.read_text() == "xx" and not stop_asked():
            time.sleep(0.05)
    dist.all_reduce(value)
    return 3 if stop_asked() else run.recipe.steps
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the stand-in can be imported from, by the workers of a cluster that is there for all tests."""
    pytest.importorskip("ray.train", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("ray")
    (folder / "stand_in_on_ray.py").write_text(STAND_IN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(None, 2):
            yield folder


def run_of(folder: Path, ending: str) -> TrainingRun:
    output = folder / ending
    output.mkdir(exist_ok=True)
    return TrainingRun(recipe=load_recipe("stage1"), manifests=("m",), checkpoint=ending, output=str(output))


def launched(run: TrainingRun, listener: Listener, **options):
    return launch_on_ray(run, 2, listener, train="stand_in_on_ray:train", **options)


def test_the_worker_that_raised_is_blamed_and_what_would_fail_again_is_not_started_again(folder):
    run, lines = run_of(folder, "fail"), []
    with pytest.raises(RankFailed) as failure:
        launched(run, Listener(lines.append), restarts=3)
    assert str(failure.value).startswith("rank 1: ValueError: sample 17 has no frames\n\n")
    assert lines.count("[rank 0] sum 2") == lines.count("[rank 1] sum 2") == 1
    assert [(run.folder / f"starts-{rank}").read_text() for rank in (0, 1)] == ["x", "x"]


def test_a_worker_that_died_is_blamed_and_replaced_and_those_that_are_stopped_say_where(folder):
    lines, metrics, stop = [], [], Event()
    run = run_of(folder, "kill")

    def after_restart() -> None:
        if (run.folder / "starts-0").is_file() and (run.folder / "starts-0").read_text() == "xx":
            stop.set()

    outcome = launched(run, Listener(lines.append, metrics.append, after_restart, stop), restarts=1)
    assert (outcome.stopped, outcome.restarts) == (f"stopped at step 3 of {run.recipe.steps}", 1)
    (again,) = (line for line in lines if "starting again" in line)
    assert again.startswith("rank 1: its worker ended: ")
    assert metrics[-1] == {"step": 1, "steps": run.recipe.steps, "loss": 1.0}


def test_without_ray_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray.train", None)
    run = TrainingRun(recipe=load_recipe("stage1"), manifests=("m",), checkpoint="tiny", output=str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match=r"contentv\[ray\]"):
        launch_on_ray(run, 1)
