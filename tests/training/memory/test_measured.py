"""The measured peak beside the planned one: in the trainer itself, and what is said where they differ."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoint import read_config
from models.flops import forward_flops
from models.video_file import GenerationMetadata, write_video
from tests.training.small_data import FPS, HEIGHT, WIDTH, moving_square, row, small_recipe, small_run, write_manifest
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.memory import measured
from training.memory.measured import PeakMemory, held_bytes, peak_bytes, reset_peak
from training.memory.step import Setup, Tokens, step_bytes
from training.observe.metrics import read_metrics

CPU = torch.device("cpu")
SETUP = Setup(read_config("tiny"), Layout())
MIB = 2**20
# So that what the process has is what its tensors take: glibc gives freed memory back at once, instead of keeping it.
AT_ONCE_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A manifest of one clip of 2 s: 33 frames."""
    folder = tmp_path_factory.mktemp("data")
    video = moving_square(2 * FPS, HEIGHT, WIDTH, 0)
    write_video(video, str(folder / "0.mp4"), GenerationMetadata("", 0), FPS)
    write_manifest([row(0, folder / "0.mp4", (HEIGHT, WIDTH), "16x9", 2, 2.0)], folder / "manifest")
    return str(folder / "manifest")


@pytest.mark.effect("MachineConfig.peak_tflops")
@pytest.mark.parametrize(
    ("mode", "every", "peak_tflops"), [("none", 1, 0.5), ("attention", 1, 1.0), ("full", 1, None), ("full", 2, None)]
)
def test_the_trainer_takes_what_the_plan_says_within_5_percent(
    data: str, tmp_path: Path, mode: Any, every: int, peak_tflops: float | None
) -> None:
    """Within 5 % of what the steps take; what the process holds besides is the same in both figures."""
    samples = 16
    batches = {"image_batch": samples, "video_batch": samples, "bucket_run": samples}
    phases = [{"data": "videos", "steps": 2}]
    recipe = small_recipe(frames=33, height=144, width=256, phases=phases, warmup_steps=1, **batches)
    machine = MachineConfig(recompute=mode, recompute_every=every, micro_batch=samples, peak_tflops=peak_tflops)
    run = small_run(data, tmp_path / mode, recipe=recipe, machine=machine)
    run.folder.mkdir()
    (run.folder / "training.json").write_text(run.model_dump_json())
    command = [sys.executable, "-m", "training.main", str(run.folder / "training.json")]
    done = subprocess.run(command, env=os.environ | AT_ONCE_FREED, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = read_metrics(run.folder / "metrics.jsonl")
    line = lines[1]  # the first step has no moments yet
    print(mode, every, [(round(each["memory_gb"], 3), round(each["memory_planned_gb"], 3)) for each in lines])
    tokens = Tokens(samples, 9 * 9 * 16, 333)
    steps = step_bytes(Setup(SETUP.config, Layout(), "float32", mode, "cpu", every), tokens) / 1e9
    assert line["memory_gb"] - line["memory_planned_gb"] == pytest.approx(0, abs=0.05 * steps)
    assert line["memory_ratio"] == pytest.approx(1, abs=0.05)
    if peak_tflops is None:
        assert line["mfu"] is None
    else:
        work = samples * forward_flops(SETUP.config, tokens.video, tokens.text).training()
        assert line["mfu"] * peak_tflops * 1e12 * line["step_s"] == pytest.approx(work, rel=1e-4)


def test_the_peak_of_a_process_is_forgotten_when_it_is_reset() -> None:
    reset_peak(CPU)
    before = peak_bytes(CPU)
    large = np.ones(64 * MIB, np.uint8)
    assert peak_bytes(CPU) - before > 56 * MIB
    del large
    assert peak_bytes(CPU) - before > 56 * MIB
    reset_peak(CPU)
    assert peak_bytes(CPU) - before < 8 * MIB


def test_the_plan_of_an_interval_is_that_of_its_costliest_micro_batch() -> None:
    memory = PeakMemory(SETUP, 1000, CPU)
    for samples in (1, 3, 2):
        memory.micro_batch(samples, 1296, 333)
    assert memory.planned_bytes == 1000 + step_bytes(SETUP, Tokens(3, 1296, 333))
    memory.reset()
    memory.micro_batch(1, 1296, 333)
    assert memory.planned_bytes == 1000 + step_bytes(SETUP, Tokens(1, 1296, 333))


@pytest.mark.parametrize(("over", "warned"), [(1.05, 0), (1.15, 1)])
def test_a_run_that_takes_a_tenth_more_than_planned_is_warned_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, over: float, warned: int
) -> None:
    memory = PeakMemory(SETUP, held_bytes(CPU), CPU)
    memory.micro_batch(2, 1296, 333)
    planned = memory.planned_bytes
    monkeypatch.setattr(measured, "peak_bytes", lambda device: round(over * planned))
    with caplog.at_level(logging.WARNING):
        line = memory.line()
        memory.micro_batch(2, 1296, 333)
        memory.line()
    assert len(caplog.records) == warned
    assert line["memory_ratio"] == pytest.approx(over, rel=1e-6)
    assert line["memory_planned_gb"] == planned / 1e9
