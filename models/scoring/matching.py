"""Matching of features by softmax, as GMFlow does it: where each place of the first picture went in the second.

Features are [B, C, h, w], flows [B, 2, h, w] as (x, y) in pixels of the features. Scores, weights and flows are float32
whatever the features are, as half floats do not count pixels exactly.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

SCORES_HELD = 1 << 24  # of one sample's scores at once: 64 MB
TEMPERATURE = 10_000


def position_embedding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sines and cosines of row and column [1, C, h, w], both scaled to (0, 2 pi] (as in DETR): rows first."""
    quarter = torch.arange(channels // 2, device=device) // 2
    wavelengths = TEMPERATURE ** (2 * quarter / (channels // 2))
    y, x = (
        torch.arange(1, side + 1, device=device).float() / (side + 1e-6) * (2 * math.pi) for side in (height, width)
    )
    angles = (y[:, None] / wavelengths, x[:, None] / wavelengths)
    rows, columns = (torch.stack([of[:, 0::2].sin(), of[:, 1::2].cos()], -1).flatten(1).T for of in angles)
    return torch.cat([rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)])[None]


def grid_like(features: Tensor) -> Tensor:
    """The place (x, y) of each feature, float32 [1, 2, h, w]."""
    y, x = (torch.arange(side, device=features.device).float() for side in features.shape[2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]


def warp(features: Tensor, flow: Tensor) -> Tensor:
    """Features as they are where the flow leads, bilinear; 0 outside."""
    sides = torch.tensor([features.shape[3] - 1, features.shape[2] - 1], device=features.device).clamp(min=1)
    places = 2 * (grid_like(features) + flow).permute(0, 2, 3, 1) / sides - 1
    found = F.grid_sample(features.float(), places, padding_mode="zeros", align_corners=True)
    return found.to(features.dtype)


def weighted_by_likeness(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """For each place, the mean of ``value`` over all places, weighted by softmax of the products of features."""
    query, key, value = (x.float().flatten(2).transpose(1, 2) for x in (query, key, value))
    parts = query.split(max(1, SCORES_HELD // key.shape[1]), dim=1)
    found = torch.cat([F.scaled_dot_product_attention(part, key, value) for part in parts], dim=1)
    return found.transpose(1, 2)


def match_everywhere(first: Tensor, second: Tensor) -> Tensor:
    """The flow by matching with the whole of the second picture."""
    grid = grid_like(first)
    found = weighted_by_likeness(first, second, grid.expand(len(first), -1, -1, -1))
    return found.unflatten(2, first.shape[2:]) - grid


def match_nearby(first: Tensor, second: Tensor, radius: int) -> Tensor:
    """The flow by matching with what lies up to ``radius`` pixels away in the second picture, each way."""
    inside = _shifted(torch.ones_like(second[:1, :1]), radius)
    scores = _products(first, second, radius)
    outside = torch.cat(list(inside), 1) == 0
    weights = scores.masked_fill(outside, -torch.inf).softmax(1)
    reach = torch.arange(-radius, radius + 1, device=first.device).float()
    offsets = torch.stack(torch.meshgrid(reach, reach, indexing="xy")).flatten(1)  # [2, n] in the order of the scores
    return torch.einsum("bnhw,dn->bdhw", weights, offsets)


def propagate_nearby(query: Tensor, key: Tensor, flow: Tensor, radius: int) -> Tensor:
    """The flow averaged over places up to ``radius`` away, each way, by likeness. Beyond the border, as published, lies
    a flow of 0 whose features are 0, and takes part."""
    weights = _products(query, key, radius).softmax(1)
    shifted = _shifted(flow, radius)
    return sum((weights[:, i : i + 1] * each for i, each in enumerate(shifted)), torch.zeros_like(flow))


def _products(query: Tensor, key: Tensor, radius: int) -> Tensor:
    """Scores [B, (2 radius + 1)^2, h, w] of each place with those around it; 0 with those outside."""
    query = query.float() / math.sqrt(query.shape[1])
    return torch.stack([(query * each).sum(1) for each in _shifted(key.float(), radius)], 1)


def _shifted(x: Tensor, radius: int) -> Iterator[Tensor]:
    """``x`` moved so that each place holds what lies at an offset, row by row of offsets; 0 comes in from outside."""
    height, width = x.shape[2:]
    padded = F.pad(x, (radius,) * 4)
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            yield padded[:, :, dy : dy + height, dx : dx + width]
