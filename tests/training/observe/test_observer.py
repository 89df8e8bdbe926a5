"""What a run leaves is left when it is due, and of weights that are no numbers nothing is left."""

import math
import time
from pathlib import Path

import pytest
import torch

from models.checkpoint import read_config
from tests.training.small_data import small_recipe
from training.data.buckets import Bucket
from training.distributed.layout import Layout
from training.distributed.parallel import start
from training.observe.metrics import Metrics, MetricsLog, NotFinite, read_metrics
from training.observe.observer import Observer
from training.run import RecordConfig, TrainingRun


class Watched:
    """An observer with a log in ``folder``, and what it saved and sampled."""

    def __init__(self, folder: Path, **record: int) -> None:
        recipe = small_recipe(phases=[{"data": "videos", "steps": 12}])
        run = TrainingRun(
            recipe=recipe, manifests=("m",), checkpoint="tiny", output=str(folder), record=RecordConfig(**record)
        )
        self.parallel = start(Layout(), "cpu")
        self.metrics = Metrics(self.parallel, read_config("tiny"), [Bucket(1, "16x9")], None)
        self.saved: list[tuple[int, float]] = []
        self.sampled: list[int] = []
        self.log, self.folder, self.pause = MetricsLog(folder, 0), folder, 0.0
        self.observer = Observer(run, self.metrics, 0, self.log, self._save, self._sample)

    def _save(self, step: int, loss: float) -> None:
        time.sleep(self.pause)
        self.saved.append((step, loss))

    def _sample(self, step: int) -> None:
        self.sampled.append(step)

    def train(self, steps: int, norm: float = 1.0) -> None:
        for step in range(steps):
            self.observer.step(step, torch.tensor(float(step)), torch.tensor(norm), 0.0)
            self.observer.after(step + 1, step + 1 == steps)

    def lines(self) -> list[int]:
        return [line["step"] for line in read_metrics(self.folder / "metrics.jsonl")]


def test_each_thing_is_left_when_it_is_due(tmp_path: Path) -> None:
    watched = Watched(tmp_path, log_every=2, save_every=6, sample_every=4)
    watched.train(9)
    assert watched.lines() == [2, 4, 6, 8, 9]
    assert watched.sampled == [4, 8]
    assert watched.saved == [(6, pytest.approx(2.5)), (9, pytest.approx(7.0))]  # the mean loss since the last


@pytest.mark.effect("RecordConfig.log_every")
@pytest.mark.effect("RecordConfig.sample_every")
def test_how_often_is_as_the_config_says(tmp_path: Path) -> None:
    def left(**record: int) -> tuple[list[int], list[int]]:
        folder = tmp_path / "-".join(f"{name}-{every}" for name, every in record.items())
        folder.mkdir()
        watched = Watched(folder, **{"save_every": 50} | record)
        watched.train(6)
        return watched.lines(), watched.sampled

    assert left(log_every=2) == ([2, 4, 6], [])
    assert left(log_every=3, sample_every=0) == ([3, 6], [])
    assert left(sample_every=2) == ([6], [2, 4, 6])
    assert left(sample_every=4, log_every=1) == ([1, 2, 3, 4, 5, 6], [4])


@pytest.mark.parametrize("due", [{"save_every": 1}, {"sample_every": 1, "save_every": 50, "log_every": 50}])
@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_of_weights_that_are_no_numbers_nothing_is_left(tmp_path: Path, due: dict[str, int], norm: float) -> None:
    watched = Watched(tmp_path, **due)
    with pytest.raises(NotFinite):
        watched.train(3, norm)
    assert (watched.saved, watched.sampled, watched.lines()) == ([], [], [])


def test_the_time_of_a_checkpoint_is_no_steps_time(tmp_path: Path) -> None:
    watched = Watched(tmp_path, log_every=1, save_every=1)
    watched.pause = 1.0
    watched.train(2)
    second = read_metrics(tmp_path / "metrics.jsonl")[1]
    assert second["step_s"] < 1.0


def test_a_line_says_how_many_captions_were_cut_since_the_last(tmp_path: Path) -> None:
    watched = Watched(tmp_path, log_every=1)
    watched.metrics.add_cut(1, 3)
    watched.metrics.add_cut(0, 2)
    watched.train(2)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["captions_cut_t5"], line["captions_cut_clip"]) for line in lines] == [(1, 5), (0, 0)]
