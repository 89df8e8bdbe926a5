"""How often a run is started again: so many times without progress, however long the stage."""

from pathlib import Path

import pytest

from training.checkpoint.checkpoints import FACTS
from training.launch.failures import RankFailed
from training.launch.listener import Listener, Restarts
from training.recipe import load_recipe
from training.run import TrainingRun

FAILURE = RankFailed("rank 3: OSError: the link is down\n\ndetails", 3)


def run_of(folder: Path) -> TrainingRun:
    return TrainingRun(recipe=load_recipe("stage1"), manifests=("m",), checkpoint="tiny", output=str(folder))


def save(run: TrainingRun, step: int) -> None:
    checkpoint = run.folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / FACTS).write_text("{}")


def test_a_checkpoint_begins_the_count_anew(tmp_path: Path) -> None:
    run, lines = run_of(tmp_path), list[str]()
    tries, listener = Restarts(run, 2), Listener(lines.append)
    for step in range(500, 5000, 500):  # more faults than restarts, as in a stage of weeks
        save(run, step)
        tries.again(FAILURE, listener)
    assert tries.made == 9
    assert lines[-1] == "rank 3: OSError: the link is down; starting again from step 4500, 1 of 2 in a row"
    tries.again(FAILURE, listener)
    assert lines[-1].endswith("starting again from step 4500, 2 of 2 in a row")
    with pytest.raises(RankFailed):
        tries.again(FAILURE, listener)


def test_checkpoints_that_were_there_before_are_no_progress_and_what_is_half_written_neither(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    save(run, 500)
    tries = Restarts(run, 1)
    tries.again(FAILURE, Listener())
    (tmp_path / "checkpoints" / "step-00001000").mkdir()
    with pytest.raises(RankFailed):
        tries.again(FAILURE, Listener())


def test_what_would_fail_again_or_is_to_stop_is_not_started_again(tmp_path: Path) -> None:
    stopping = Listener()
    stopping.stop.set()
    for failure, listener in ((RankFailed("diverged", 0, retry=False), Listener()), (FAILURE, stopping)):
        with pytest.raises(RankFailed):
            Restarts(run_of(tmp_path), 3).again(failure, listener)
