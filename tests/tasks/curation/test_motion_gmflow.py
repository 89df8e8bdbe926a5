"""Motion by a flow network: equal flow, equal speeds; pairs of clips of all sizes; any network in its place."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.scoring.gmflow import load_gmflow
from tasks.curation.motion import MOTION, MotionConfig, clip_speeds, flow_of, row_of, speeds_of, working_picture
from tasks.curation.motion_gmflow import MotionScorer, Sample, working_colour
from tasks.tables.frame_store import FramePair
from tests.models.scoring.tiny_networks import write_gmflow

GMFLOW_FILE = "gmflow-scale1-mixdata-train320x576-4c3a6e9a.pth"
CONFIG = MotionConfig(scorer="gmflow", working_side=64)


class Shift:
    """A flow network that sees the whole picture move by one vector, and remembers its batches."""

    def __init__(self, x: float, y: float) -> None:
        self.vector, self.batches = torch.tensor([x, y]), list[int]()

    def flow(self, image0: Tensor, image1: Tensor) -> Tensor:
        self.batches.append(len(image0))
        return self.vector.view(1, 2, 1, 1).expand(len(image0), 2, *image0.shape[2:])


def pan(pairs: int, height: int, width: int, pixels: int = 4, seed: int = 0) -> list[FramePair]:
    """Pairs of a texture that moves to the right, RGB, a tenth of a second apart."""
    from cv2 import GaussianBlur

    noise = np.random.default_rng(seed).integers(0, 256, (height, width + 200, 3), np.uint8)
    strip = np.asarray(GaussianBlur(noise, (0, 0), 2.0), np.uint8)
    strip = np.clip((strip.astype(np.float32) - 128) * 4 + 128, 0, 255).astype(np.uint8)
    return [
        FramePair(i / 2, 0.1, strip[:, 100 - 8 * i : 100 - 8 * i + width], strip[:, 100 - 8 * i - pixels :][:, :width])
        for i in range(pairs)
    ]


def sample(pairs: list[FramePair], side: int = CONFIG.working_side) -> Sample:
    return Sample(pairs, [(working_colour(p.first, side), working_colour(p.second, side)) for p in pairs])


@pytest.mark.parametrize(("height", "width"), [(48, 64), (300, 90), (20, 64)])
def test_pictures_are_of_the_size_that_flow_is_judged_in(height, width):
    (pair,) = pan(1, height, width)
    assert working_colour(pair.first, 64).shape[:2] == working_picture(pair.first, 64).shape


def test_a_pan_is_as_fast_as_any_network_that_is_right_says_it_is():
    pairs = pan(6, 128, 192)
    config = MotionConfig(scorer="gmflow", working_side=192)
    (row,) = MotionScorer(config, Shift(4, 0)).score([sample(pairs, 192)])
    by_dis, _ = clip_speeds(pairs, MotionConfig(working_side=192))
    assert row["motion_bg"] == pytest.approx(4 / np.hypot(128, 192) / 0.1, rel=0.1)
    assert row["motion_bg"] == pytest.approx(by_dis, rel=0.1)
    assert row["motion_fg"] == pytest.approx(0, abs=0.02)


def test_pairs_of_all_clips_pass_together_by_size_and_rows_are_not_mixed_up():
    network = Shift(2, 0)
    clips = [pan(3, 48, 64, seed=1), pan(2, 64, 48, seed=2), [], pan(4, 48, 64, seed=3)]
    rows = MotionScorer(CONFIG, network).score([sample(pairs) for pairs in clips])
    assert network.batches == [7, 2]
    assert rows[2] == {"motion_bg": None, "motion_fg": None, "motion": None}
    for pairs, row in zip(clips, rows, strict=True):
        assert MotionScorer(CONFIG, Shift(2, 0)).score([sample(pairs)]) == [row]


def test_gmflow_from_an_official_file_gives_what_it_gives_pair_by_pair(tmp_path: Path, monkeypatch):
    write_gmflow(tmp_path / "gmflow" / GMFLOW_FILE)
    monkeypatch.setenv("CONTENTV_WEIGHTS", str(tmp_path))
    pairs = pan(3, 48, 64)
    scorer = MOTION.scorer(CONFIG)
    assert scorer.device == "accelerator" and len(scorer.weights or "") == 32
    (row,) = scorer.score([sample(pairs)])
    network = load_gmflow(tmp_path / "gmflow" / GMFLOW_FILE)
    flows = []
    for pair, pictures in zip(pairs, sample(pairs).pictures, strict=True):
        first, second = (torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in pictures)
        flows.append(flow_of(pair, CONFIG, network.flow(first, second)[0].permute(1, 2, 0).numpy()))
    expected = row_of(speeds_of(flows, [0.1] * 3))
    assert row["motion"] == pytest.approx(expected["motion"], rel=0.02, abs=1e-3)
