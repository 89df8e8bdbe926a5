"""The report's aesthetic score from tiny checkpoints on disk: batched across clips, keyed by weights."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from models.scoring.aesthetic import load_aesthetic
from tasks.curation.aesthetics import AESTHETICS, AestheticsConfig
from tasks.curation.preflight import check_weights
from tasks.curation.settings import CurationConfig
from tasks.tables.checks import PreflightError
from tasks.tables.frame_store import open_frames
from tasks.tables.measure import Chosen, measure, uris_of
from tests.models.scoring.tiny_networks import write_clip, write_laion_head
from tests.tasks.rows import read, seconds_of, store, write

HEAD = "sac+logos+ava1-l14-linearMSE.pth"
SOURCES, CLIPS = 3, 3
CONFIG = AestheticsConfig(scorer="clip", key_frames=2)


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights"
    write_clip(folder / "clip")
    write_laion_head(folder / "aesthetic" / HEAD)
    monkeypatch.setenv("CONTENTV_WEIGHTS", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # device slots of this test alone
    return folder


@pytest.fixture
def shard(tmp_path: Path) -> list[str]:
    """The tables of three sources of three clips of a second each; every source has pictures of its own."""
    rows = [row | {"rejected_by": []} for row in seconds_of(SOURCES, CLIPS)]
    generator = np.random.default_rng(0)
    for s in range(SOURCES):
        store(tmp_path, [generator.integers(0, 256, (36, 64, 3), np.uint8) for _ in range(12)], f"frames/{s}")
    scanned = write(tmp_path, "scan", [row | {"error": None} for row in rows[::CLIPS]])
    overlays = write(tmp_path, "overlays", [{"clip_id": row["clip_id"], "error": None} for row in rows])
    return [scanned, write(tmp_path, "cut", rows), write(tmp_path, "dedup clips", rows), overlays]


def scores(tables: list[str], chosen: Chosen) -> dict[str, float]:
    *clips, overlays = tables
    uri = measure([chosen], clips, {"overlays": overlays})["aesthetics"]
    rows = read(uri)
    assert all(row["error"] is None for row in rows)
    return {row["clip_id"]: row["aesthetic"] for row in rows}


def test_each_clip_has_the_mean_score_of_its_own_key_frames(shard, weights, tmp_path):
    found = scores(shard, Chosen(AESTHETICS, CONFIG))
    network = load_aesthetic(weights / "clip", weights / "aesthetic" / HEAD)
    for name, value in found.items():
        with open_frames(str(tmp_path / "frames" / name[0] / "samples.parquet")) as frames:
            images = [frame.image for frame in frames.frames(float(name[1]), float(name[1]) + 1, 2)]
        expected = network.judge(torch.stack([network.clip.prepare(image) for image in images])).aesthetic.mean()
        assert value == pytest.approx(expected.item(), abs=1e-5)
    assert len(set(found.values())) == SOURCES * CLIPS


def test_all_clips_of_all_sources_are_one_image_pass(shard, monkeypatch):
    chosen = Chosen(AESTHETICS, CONFIG)
    passes: list[int] = []
    chosen.scorer(0)._network.clip.tower.register_forward_hook(lambda m, i, output: passes.append(len(output)))
    scores(shard, chosen)
    assert len(passes) == 1 and passes[0] <= 2 * SOURCES * CLIPS


def test_other_weights_are_another_result_and_lite_does_not_know_of_them(shard, weights):
    *clips, overlays = shard

    def uri(config: AestheticsConfig) -> str:
        return uris_of([Chosen(AESTHETICS, config)], clips, {"overlays": overlays})["aesthetics"]

    before, lite = uri(CONFIG), uri(AestheticsConfig())
    head = torch.load(weights / "aesthetic" / HEAD, weights_only=True)
    torch.save({key: 2 * tensor for key, tensor in head.items()}, weights / "aesthetic" / HEAD)
    assert uri(CONFIG) != before
    assert uri(AestheticsConfig()) == lite


def test_preflight_tells_all_weights_that_the_chosen_scorers_lack(monkeypatch, tmp_path):
    monkeypatch.setenv("CONTENTV_WEIGHTS", str(tmp_path / "none"))
    check_weights(CurationConfig())
    with pytest.raises(PreflightError, match="2 checkpoints are missing") as error:
        check_weights(CurationConfig(aesthetics=CONFIG))
    for words in ("clip (ViT-L-14-quickgelu, openai", "hf download timm/", "aesthetic (sac+logos", "curl --fail"):
        assert words in str(error.value)
