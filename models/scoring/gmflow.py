"""GMFlow: optical flow by global matching (Xu et al., CVPR 2022, arXiv 2111.13680), refined at a second scale or not.

The pictures' features see each other in a transformer; where a place went is the mean of all places of the second
picture, weighted by likeness; flow is then carried to where nothing matched by the likeness of the first picture to
itself. With two scales the second picture is warped by that flow, and the same network matches again, nearby and at a
quarter of the resolution instead of an eighth.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.scoring.gmflow_layers import CHANNELS, Encoder, FeatureTransformer
from models.scoring.loading import build
from models.scoring.matching import (
    match_everywhere,
    match_nearby,
    position_embedding,
    propagate_nearby,
    warp,
    weighted_by_likeness,
)
from models.scoring.state_dict import read_state_dict

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class FlowNetwork(Protocol):
    """What any network of optical flow is to the scores that use one."""

    def flow(self, image0: Tensor, image1: Tensor) -> Tensor:
        """Flow float32 [B, 2, H, W], (x, y) in pixels, from RGB ``image0`` to ``image1``, [B, 3, H, W], 0 to 255."""


@dataclass(frozen=True)
class Scale:
    """How one scale is matched. ``radius`` None: with the whole picture, also in propagation."""

    splits: int
    radius: int | None
    propagation_radius: int


SCALES = (Scale(2, None, 0), Scale(8, 4, 1))
PADDING = {1: 16, 2: 32}  # sides are multiples of this inside
UPSAMPLING = {1: 8, 2: 4}


class FlowPropagation(nn.Module):
    """Projections by which the likeness of the first picture's places to each other is judged."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(CHANNELS, CHANNELS)
        self.k_proj = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, features: Tensor, flow: Tensor, scale: Scale) -> Tensor:
        tokens = features.permute(0, 2, 3, 1)
        query = self.q_proj(tokens)
        places = 0, 3, 1, 2
        if scale.radius is None:
            # The published weights were trained so: over the whole picture, keys are made of the queries.
            key = self.k_proj(query)
            return weighted_by_likeness(query.permute(places), key.permute(places), flow).view_as(flow)
        key = self.k_proj(tokens)
        return propagate_nearby(query.permute(places), key.permute(places), flow, scale.propagation_radius)


class GMFlow(nn.Module):
    """A ``FlowNetwork``. Parameters have the names of the published weights: 4,680,288 of them, or 4,716,720."""

    def __init__(self, num_scales: Literal[1, 2] = 1) -> None:
        super().__init__()
        if num_scales not in (1, 2):
            raise ValueError(f"GMFlow has one scale or two, not {num_scales}")
        self.num_scales = num_scales
        self.backbone = Encoder(num_scales)
        self.transformer = FeatureTransformer()
        self.feature_flow_attn = FlowPropagation()
        self.upsampler = nn.Sequential(
            nn.Conv2d(2 + CHANNELS, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, UPSAMPLING[num_scales] ** 2 * 9, 1)
        )

    @torch.no_grad()
    def flow(self, image0: Tensor, image1: Tensor) -> Tensor:
        """Flow float32 [B, 2, H, W] in pixels, (x, y), from ``image0`` to ``image1``, RGB 0 to 255 [B, 3, H, W], of any
        size: it is padded inside by its edges, on both sides alike.

        ValueError: the pictures are not two batches of one shape.
        """
        if image0.shape != image1.shape or image0.ndim != 4 or image0.shape[1] != 3 or not image0.numel():
            raise ValueError(
                "flow takes two batches of RGB pictures [B, 3, H, W] of one shape, not "
                f"{list(image0.shape)} and {list(image1.shape)}"
            )
        height, width = image0.shape[2:]
        left, right, top, bottom = padding_of(height, width, PADDING[self.num_scales])
        both = torch.cat([image0, image1]).float()
        padded = F.pad(both, (left, right, top, bottom), mode="replicate")
        found = self(*padded.chunk(2))
        return found[:, :, top : top + height, left : left + width]

    def forward(self, image0: Tensor, image1: Tensor) -> Tensor:
        """The flow of pictures whose sides are multiples of 16 with one scale, of 32 with two."""
        both = torch.cat([image0, image1]) / 255
        mean, std = (torch.tensor(values, device=both.device).view(3, 1, 1) for values in (MEAN, STD))
        both = (both - mean) / std
        flow: Tensor | None = None
        for scale, features in zip(SCALES, self.backbone(both.to(self.backbone.conv2.weight.dtype)), strict=False):
            first, second = features.chunk(2)
            if flow is not None:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
                second = warp(second, flow)
            first, second = self._transformed(first, second, scale.splits)
            radius = scale.radius
            found = match_everywhere(first, second) if radius is None else match_nearby(first, second, radius)
            flow = self.feature_flow_attn(first, found if flow is None else flow + found, scale)
        assert flow is not None
        return self._upsampled(flow, first)

    def _transformed(self, first: Tensor, second: Tensor, splits: int) -> tuple[Tensor, Tensor]:
        """Features with their places in their windows added, after the transformer."""
        height, width = first.shape[2:]
        place = position_embedding(height // splits, width // splits, CHANNELS, first.device)
        place = place.repeat(1, 1, splits, splits).to(first.dtype)
        return self.transformer(first + place, second + place, splits)

    def _upsampled(self, flow: Tensor, features: Tensor) -> Tensor:
        """Flow at the pictures' resolution: each pixel's is a weighted mean of that of 3x3 places around it."""
        factor = UPSAMPLING[self.num_scales]
        height, width = flow.shape[2:]
        weights = self.upsampler(torch.cat([flow.to(features.dtype), features], 1)).float()
        weights = weights.view(-1, 9, factor * factor, height, width).softmax(1)
        around = F.unfold(factor * flow, 3, padding=1).view(-1, 2, 9, height, width)
        fine = torch.einsum("bnkhw,bdnhw->bdkhw", weights, around)
        return F.pixel_shuffle(fine.flatten(1, 2), factor)


def padding_of(height: int, width: int, multiple: int) -> tuple[int, int, int, int]:
    """Left, right, top and bottom padding up to multiples; of an odd number the smaller half is left or top."""
    x, y = -width % multiple, -height % multiple
    return x // 2, x - x // 2, y // 2, y - y // 2


def load_gmflow(file: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> GMFlow:
    """GMFlow with the weights of a published ``.pth`` file, or of safetensors: one scale or two, as they are.

    Args:
        dtype: of weights and features. Matching and flow are float32 always.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or its keys or shapes are not GMFlow's.
    """
    state = read_state_dict(file)
    scales: Literal[1, 2] = 2 if "backbone.trident_conv.weight" in state else 1
    return build(lambda: GMFlow(scales), state, str(file), dtype=dtype, device=device)
