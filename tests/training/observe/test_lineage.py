"""Lineage says what was trained on, and forgets what was undone."""

from pathlib import Path

import pytest
import torch

from tests.training.small_data import small_recipe, write_data
from training.data.manifest import open_manifest
from training.data.plan import BatchPlan, Job
from training.observe.lineage import Lineage, forget, main, read_lineage


@pytest.fixture
def plan(tmp_path: Path) -> BatchPlan:
    manifest = open_manifest([write_data(tmp_path / "data")], tmp_path / "cache")
    return BatchPlan(manifest, Job(recipe=small_recipe(), seed=0, manifest=manifest.fingerprint))


def record(plan: BatchPlan, folder: Path, steps: range) -> None:
    for rank in range(2):
        lineage = Lineage(folder, rank, plan.job.recipe.fps)
        for step in steps:
            samples = plan.samples(step, rank, 2)
            lineage.add(step, samples, torch.full((len(samples),), 0.25), [()] * len(samples))
        lineage.write()


def test_a_step_is_answered_with_its_clips(plan: BatchPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(plan, tmp_path, range(4))
    rows = read_lineage(tmp_path, step=2)
    samples = plan.samples(2)
    assert [row["clip_id"] for row in rows] == [sample.clip.clip_id for sample in samples]
    assert [row["caption"] for row in rows] == [sample.caption for sample in samples]
    assert [row["seed"] for row in rows] == [sample.seed for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        seconds = sample.shape.frames / 24
        assert row["end_s"] - row["start_s"] == pytest.approx(seconds)
        assert row["truncated_s"] == pytest.approx(sample.clip.end_s - seconds)
    assert main([str(tmp_path), "--step", "2"]) == 0
    assert all(sample.clip.clip_id in capsys.readouterr().out for sample in samples[:1])


def test_a_clip_is_answered_with_its_steps(plan: BatchPlan, tmp_path: Path) -> None:
    record(plan, tmp_path, range(6))
    clip = plan.samples(1)[0].clip.clip_id
    steps = {step for step in range(6) for sample in plan.samples(step) if sample.clip.clip_id == clip}
    assert {row["step"] for row in read_lineage(tmp_path, clip=clip)} == steps


def test_steps_that_are_taken_again_are_forgotten(plan: BatchPlan, tmp_path: Path) -> None:
    record(plan, tmp_path, range(3))
    record(plan, tmp_path, range(3, 6))
    forget(tmp_path, 3)
    assert {row["step"] for row in read_lineage(tmp_path)} == {0, 1, 2}


def test_a_file_that_a_crash_left_without_its_name_does_not_count(plan: BatchPlan, tmp_path: Path) -> None:
    record(plan, tmp_path, range(3))
    whole = read_lineage(tmp_path)
    (written, *_) = (tmp_path / "lineage").iterdir()
    left = written.with_name(f".{written.name}.0a1b2c3d.partial")
    left.write_bytes(written.read_bytes())
    assert read_lineage(tmp_path) == whole
    forget(tmp_path, 3)
    assert not left.exists() and read_lineage(tmp_path) == whole


def test_what_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--step", "0"]) == 1
    assert "has no lineage" in capsys.readouterr().err
