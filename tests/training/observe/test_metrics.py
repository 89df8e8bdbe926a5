"""The numbers of a line are those of its steps, and a resumed run has no step twice."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoint import read_config
from models.flops import forward_flops
from training.data.buckets import Bucket, Shape
from training.data.plan import values
from training.distributed.layout import Layout
from training.distributed.parallel import Parallel, start
from training.observe.metrics import Metrics, MetricsLog, NotFinite, read_metrics

WIDE, TALL = Bucket(1, "16x9"), Bucket(1, "9x16")
SHORT, LONG = Shape(5, 32, 48), Shape(9, 48, 32)
CONFIG = read_config("tiny")


def metrics(peak: float | None = None) -> Metrics:
    return Metrics(start(Layout(), "cpu"), CONFIG, [WIDE, TALL], peak)


def test_a_line_is_the_mean_over_its_steps_by_band_and_by_bucket() -> None:
    told = metrics(peak=1.0)
    per_value = {WIDE: torch.tensor([0.5, 1.5]), TALL: torch.tensor([3.0])}
    for step in range(2):
        told.add([WIDE] * 2, SHORT, torch.tensor([0.12, 0.55]), 333, per_value[WIDE] * values(SHORT))
        told.add([TALL], LONG, torch.tensor([0.57]), 333, per_value[TALL] * values(LONG))
        told.end_step(step, torch.tensor(2.0 + step), torch.tensor(1.0 + step), 0.0)
    line = told.line(2, 10, 1e-3)
    assert line["loss"] == pytest.approx(2.5) and line["gradient_norm"] == pytest.approx(1.5)
    assert line["loss_by_bucket"] == {"16x9 1 s": pytest.approx(1.0), "9x16 1 s": pytest.approx(3.0)}
    weighed = (1.5 * values(SHORT) + 3.0 * values(LONG)) / (values(SHORT) + values(LONG))
    assert line["loss_by_band"] == {"0.1-0.2": pytest.approx(0.5), "0.5-0.6": pytest.approx(weighed)}
    assert line["samples"] == 6
    seconds = 2 * line["step_s"]
    assert line["tokens_per_s"] * seconds == pytest.approx(2 * (2 * SHORT.tokens + LONG.tokens))
    work = 2 * sum(n * forward_flops(CONFIG, shape.tokens).training() for n, shape in ((2, SHORT), (1, LONG)))
    assert line["mfu"] * seconds == pytest.approx(work / 1e12, rel=1e-5)


def test_an_interval_forgets_the_one_before() -> None:
    told = metrics()
    for step, loss in enumerate((5.0, 1.0)):
        told.add([WIDE], SHORT, torch.tensor([0.3]), 333, torch.tensor([loss * values(SHORT)]))
        told.end_step(step, torch.tensor(loss), torch.tensor(1.0), 0.0)
        line = told.line(step + 1, 2, 1e-3)
        assert line["loss"] == pytest.approx(loss) and line["interval_steps"] == 1
        assert line["mfu"] is None


@pytest.mark.parametrize("sequence", [1, 8])
def test_the_share_of_waiting_is_that_of_the_ranks_that_wait(sequence: int) -> None:
    layout = Layout(world=8, sequence=sequence)
    parallel = Together(layout, 0, torch.device("cpu"))
    told = Metrics(parallel, CONFIG, [WIDE], None)
    told.add([WIDE], SHORT, torch.tensor([0.3]), 333, torch.tensor([1.0]))
    told.end_step(0, torch.tensor(1.0), torch.tensor(1.0), waited_s=2.5)
    line = told.line(1, 1, 1e-3)
    assert line["data_wait"] * line["step_s"] == pytest.approx(2.5, rel=1e-5)


class Together(Parallel):
    """Rank 0 of a run whose other leaders do just what it does, while the other ranks wait for nothing."""

    def total(self, tensor: Tensor) -> Tensor:
        return tensor * self.layout.data_ranks


class OnNpu(Tensor):
    """A tensor that refuses what one on an NPU refuses: to be float64."""

    def double(self, *arguments: object, **options: object) -> Tensor:
        raise RuntimeError("DT_DOUBLE is not supported")

    def cpu(self, *arguments: object, **options: object) -> Tensor:
        return self.as_subclass(Tensor)


def test_the_device_is_not_asked_for_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parallel, "total", lambda self, tensor: tensor.as_subclass(OnNpu))
    told = metrics()
    told.end_step(0, torch.tensor(2.0), torch.tensor(1.0), 0.0)
    assert told.line(1, 1, 1e-3)["loss"] == pytest.approx(2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_found_with_its_step(bad: float) -> None:
    told = metrics()
    for step, norm in enumerate((1.0, bad, bad, 1.0)):
        told.end_step(step, torch.tensor(1.0), torch.tensor(norm), 0.0)
    with pytest.raises(NotFinite) as found:
        told.line(4, 10, 1e-3)
    assert found.value.step == 1


def test_lines_of_steps_that_are_taken_again_are_cut_off(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": float(step), "mfu": None, "loss_by_band": {"0.1-0.2": 1.0}, "time": 0.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # its writer was killed
    log = MetricsLog(tmp_path, 2)
    log.write({"step": 3, "loss": 30.0, "time": 0.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1),
        (2, 2),
        (3, 30),
    ]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
