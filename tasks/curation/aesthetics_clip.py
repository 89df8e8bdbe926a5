"""The report's aesthetic score: LAION's predictor on CLIP ViT-L/14, mean over key frames, batched across clips."""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from models.scoring.aesthetic import AestheticPredictor, load_aesthetic
from models.scoring.clip import clip_side, middle_of
from models.scoring.device import current_device
from models.scoring.weights import hash_of, located
from tasks.curation.aesthetics import CLIP_CHECKPOINTS
from tasks.tables.clip import Clip
from tasks.tables.step import Row

CLIPS_PER_BATCH = 32


class AestheticScorer:
    """A ``Scorer`` whose network is loaded by the first batch, onto the device that is current then."""

    batch = CLIPS_PER_BATCH
    device: Literal["accelerator"] = "accelerator"

    def __init__(self, key_frames: int) -> None:
        self._key_frames = key_frames

    @property
    def weights(self) -> str:
        """The hashes of both checkpoints. FileNotFoundError with what brings it where one is missing."""
        return "-".join(hash_of(name) for name in CLIP_CHECKPOINTS)

    def prepare(self, clip: Clip) -> Tensor:
        """The clip's key frames, uint8 [frames, 3, side, side]; none where it has no pictures."""
        pictures = [middle_of(frame.image, self._side) for frame in clip.frames(self._key_frames)]
        stacked = [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]
        return torch.stack(stacked) if stacked else torch.empty(0, 3, self._side, self._side, dtype=torch.uint8)

    def score(self, samples: Sequence[Tensor]) -> list[Row]:
        """The mean score of each clip's key frames, all frames of all clips in one pass; null where there are none."""
        if not sum(map(len, samples)):
            return [{"aesthetic": None} for _ in samples]
        scores = self._network.judge(torch.cat(list(samples))).aesthetic.cpu()
        parts = scores.split([len(sample) for sample in samples])
        return [{"aesthetic": float(part.mean()) if len(part) else None} for part in parts]

    @cached_property
    def _network(self) -> AestheticPredictor:
        return load_aesthetic(located("clip"), located("aesthetic"), device=current_device())

    @cached_property
    def _side(self) -> int:
        return clip_side(located("clip"))
