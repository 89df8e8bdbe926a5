"""The LAION head: the published scores, and one image pass for what two users need."""

import numpy as np
import pytest
import torch
from torch import nn

from models.checkpoint import CheckpointError
from models.scoring.aesthetic import LaionHead, load_aesthetic, load_laion_head
from tests.models.scoring.goldens import golden
from tests.models.scoring.tiny_networks import CLIP_WIDTH, write_clip, write_laion_head

PUBLISHED = "sac+logos+ava1-l14-linearMSE.pth"


def test_the_published_head_gives_the_published_scores():
    found = np.load(golden("laion_public.npz"))
    scores = load_laion_head(golden(PUBLISHED))(torch.from_numpy(found["embedding"]))
    assert (scores - torch.from_numpy(found["score"])).abs().max() < 1e-4


def test_the_head_has_the_published_layers_and_no_activation():
    head = LaionHead().eval()
    assert {key: list(t.shape) for key, t in head.state_dict().items() if key.endswith("weight")} == {
        "layers.0.weight": [1024, 768],
        "layers.2.weight": [128, 1024],
        "layers.4.weight": [64, 128],
        "layers.6.weight": [16, 64],
        "layers.7.weight": [1, 16],
    }
    one, other = torch.randn(2, 4, 768, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # linear: the score of a middle is the middle of the scores
        assert torch.allclose(head((one + other) / 2), (head(one) + head(other)) / 2, atol=1e-5)


@pytest.fixture
def predictor(tmp_path):
    write_clip(tmp_path / "clip")
    write_laion_head(tmp_path / "head.pth")
    return load_aesthetic(tmp_path / "clip", tmp_path / "head.pth")


def test_one_image_pass_gives_both_embedding_and_score(predictor):
    passes = []
    predictor.clip.tower.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (60, 80, 3), np.uint8) for _ in range(4)]
    judged = predictor.judge(torch.stack([predictor.clip.prepare(image) for image in images]))
    assert passes == [4]
    assert judged.embedding.shape == (4, CLIP_WIDTH)
    assert torch.equal(judged.aesthetic, predictor.head(judged.embedding))
    assert judged.aesthetic.dtype == torch.float32


def test_a_head_for_vectors_of_another_width_is_refused(tmp_path):
    write_clip(tmp_path / "clip")
    write_laion_head(tmp_path / "head.pth", width=32)
    with pytest.raises(CheckpointError, match="rates vectors of 32 numbers, and CLIP's have 24"):
        load_aesthetic(tmp_path / "clip", tmp_path / "head.pth")


def test_weights_of_another_head_are_refused(tmp_path):
    torch.save(nn.Linear(CLIP_WIDTH, 1).state_dict(), tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=r"10 missing: layers\.0\.weight"):
        load_laion_head(tmp_path / "head.pth")
