"""VideoAlign (VideoReward): how good a video looks, how well it moves, how well it fits its prompt (Liu et al., 2025).

A Qwen2-VL reads the video and a question with three reward tokens; a linear head on the last state at each token gives
the reward: visual quality (VQ), motion quality (MQ) and text alignment (TA). The report's Table 4 shows them
normalised, and their sum as the overall reward.

Positions are 0, 1, 2, ... on all three rotary axes. The published program hands no positions on, and the transformers
that it pins then counts tokens; later ones compute positions in space and time, and give other rewards (NUMERICS 6b).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.scoring.videoalign_prompt import padded, prompt_ids
from models.scoring.videoalign_video import FPS, MOST_PIXELS, frame_indices, token_count, video_patches

DIMENSIONS = ("VQ", "MQ", "TA")


@dataclass(frozen=True)
class Statistics:
    """The mean and deviation of each dimension's raw rewards, by which they are normalised; as published."""

    mean: tuple[float, float, float] = (3.6757, 1.1646, 2.8105)
    std: tuple[float, float, float] = (2.2476, 1.3811, 2.5121)


class VideoAlign(nn.Module):
    """The network: ``model`` (Qwen2-VL without its language head) and ``rm_head``."""

    def __init__(self, config: Any, reward_tokens: tuple[int, int, int]) -> None:
        """Args:
        config: transformers' ``Qwen2VLConfig``.
        reward_tokens: the ids of the tokens for VQ, MQ and TA, from the tokenizer.
        """
        from transformers import Qwen2VLModel  # takes seconds, which every process would pay

        super().__init__()
        self.model: Any = Qwen2VLModel(config)
        self.rm_head = nn.Linear(config.text_config.hidden_size, len(DIMENSIONS), bias=False)
        self.reward_tokens = reward_tokens

    def rewards(self, pixel_values: Tensor, grid: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw rewards float32 [B, 3]: VQ, MQ, TA.

        Args:
            pixel_values: the patches of all videos, one after the other, [N, 1176] (see ``video_patches``).
            grid: the patches of each video in time, rows and columns, [B, 3].
            input_ids: [B, L], padded at the end, with as many video tokens as the grid says.
            attention_mask: [B, L], 1 where a token is.

        Raises:
            ValueError: a row has not exactly one of each reward token, or shapes do not go together.
        """
        device = self.rm_head.weight.device
        ids, mask = input_ids.to(device, torch.long), attention_mask.to(device, torch.long)
        if not len(ids) == len(grid) == len(mask) or ids.shape != mask.shape:
            raise ValueError(
                f"ids {list(ids.shape)}, mask {list(mask.shape)} and grid {list(grid.shape)} are of one batch"
            )
        at = ids[:, None] == torch.tensor(self.reward_tokens, device=device)[:, None]  # [B, 3, L]
        if not (at.sum(2) == 1).all():
            raise ValueError("every row has each of the three reward tokens exactly once, and one of these has not")
        positions = torch.arange(ids.shape[1], device=device).expand(3, *ids.shape)
        states = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            pixel_values_videos=pixel_values.to(device),
            video_grid_thw=grid.to(device, torch.long),
            use_cache=False,
        ).last_hidden_state
        chosen = states[torch.arange(len(ids), device=device)[:, None], at.int().argmax(2)]  # [B, 3, hidden]
        return (chosen.float() * self.rm_head.weight.float()).sum(2)


def normalised(raw: Tensor, statistics: Statistics | None = None) -> Tensor:
    """Raw rewards [..., 3] in deviations from the mean of each dimension. Their sum is the overall reward."""
    statistics = statistics or Statistics()
    return (raw - raw.new_tensor(statistics.mean)) / raw.new_tensor(statistics.std)


@dataclass(frozen=True)
class Judgement:
    """The normalised rewards of one video."""

    vq: float
    mq: float
    ta: float

    @property
    def overall(self) -> float:
        """The sum of the three."""
        return self.vq + self.mq + self.ta


@dataclass(frozen=True)
class Judge:
    """The network with what it needs to judge videos: its tokenizer, its wording and its statistics."""

    network: VideoAlign
    tokenizer: Any
    template: str
    statistics: Statistics
    fps: float = FPS
    most_pixels: int = MOST_PIXELS

    @torch.no_grad()
    def judge(self, videos: list[tuple[Tensor, float]], prompts: list[str]) -> list[Judgement]:
        """Judge each video, RGB uint8 [T, H, W, 3] with its frames a second, by its prompt, in one batch.

        Raises:
            ValueError: there are not as many prompts as videos, or a video cannot be judged (see ``video_patches``).
        """
        patches, grids, rows = [], [], []
        for (frames, fps), prompt in zip(videos, prompts, strict=True):
            seen = frames[frame_indices(len(frames), fps, wanted_fps=self.fps)]
            pixels, grid = video_patches(seen, most_pixels=self.most_pixels)
            patches.append(pixels)
            grids.append(grid)
            rows.append(prompt_ids(self.tokenizer, self.template, prompt, token_count(grid)))
        ids, mask = padded(rows, self.tokenizer.pad_token_id)
        raw = self.network.rewards(torch.cat(patches), torch.stack(grids), ids, mask)
        return [Judgement(*row) for row in normalised(raw, self.statistics).tolist()]
