"""What a training run shows while it runs is its own."""

import logging
from pathlib import Path

from flows.training_artifacts import TrainingArtifacts
from tests.training.small_data import small_run


def test_a_folder_that_somebody_put_among_the_samples_is_left_alone(tmp_path: Path, prefect_api: None) -> None:
    kept = tmp_path / "out" / "samples" / "step-00000004-keep"
    kept.mkdir(parents=True)
    (kept / "00.mp4").write_bytes(b"a copy")
    TrainingArtifacts(small_run("manifest", tmp_path / "out"), logging.getLogger()).refresh(now=True)
    assert (kept / "00.mp4").read_bytes() == b"a copy"
