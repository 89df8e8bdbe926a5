"""The LAION aesthetic predictor: a linear head on CLIP ViT-L/14 vectors, trained on people's ratings of 1 to 10.

Its published weights are ``sac+logos+ava1-l14-linearMSE`` of improved-aesthetic-predictor. One image pass serves it and
the search for duplicates.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import CheckpointError
from models.scoring.clip import ClipImages, load_clip
from models.scoring.loading import build
from models.scoring.state_dict import read_state_dict

WIDTH = 768


class LaionHead(nn.Module):
    """Five linear layers without anything between them but dropout, which is for training."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        sides = (1024, 128, 64, 16)
        self.layers = nn.Sequential(
            *(nn.Linear(width, sides[0]), nn.Dropout(0.2)),
            *(nn.Linear(sides[0], sides[1]), nn.Dropout(0.2)),
            *(nn.Linear(sides[1], sides[2]), nn.Dropout(0.1)),
            *(nn.Linear(sides[2], sides[3]), nn.Linear(sides[3], 1)),
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """Scores [B], about 1 to 10, of unit vectors [B, width]."""
        return self.layers(embedding).squeeze(-1)


def load_laion_head(file: str | Path, *, device: torch.device | str = "cpu") -> LaionHead:
    """The head with its published weights, in float32.

    FileNotFoundError or CheckpointError: the file is missing or damaged, or its keys or shapes are not the head's.
    """
    state = read_state_dict(file)
    first = state.get("layers.0.weight")
    width = first.shape[1] if first is not None and first.ndim == 2 else WIDTH
    return build(lambda: LaionHead(width), state, str(file), dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Judged:
    """What one image pass gives: unit vectors ``embedding`` [B, width] and scores ``aesthetic`` [B], both float32."""

    embedding: Tensor
    aesthetic: Tensor


class AestheticPredictor:
    """CLIP's image tower with the LAION head on it."""

    def __init__(self, clip: ClipImages, head: LaionHead) -> None:
        """CheckpointError: the head rates vectors of another width than the tower's."""
        rated = head.layers[0].in_features
        if rated != clip.width:
            raise CheckpointError(f"the aesthetic head rates vectors of {rated} numbers, and CLIP's have {clip.width}")
        self.clip, self.head = clip, head

    def judge(self, pixels: Tensor) -> Judged:
        """Vectors and scores of pictures uint8 [B, 3, side, side], as ``clip.prepare`` makes them, in one pass."""
        embedding = self.clip.embed(pixels)
        with torch.no_grad():
            return Judged(embedding, self.head(embedding))


def load_aesthetic(
    clip: str | Path, head: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> AestheticPredictor:
    """The predictor from CLIP's folder or file (see ``load_clip``) and the head's file; ``dtype`` is the tower's."""
    return AestheticPredictor(load_clip(clip, device=device, dtype=dtype), load_laion_head(head, device=device))
