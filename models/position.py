"""Where a token is in the video: 3D sin-cos position embedding, and 3D rotary embedding (report, section 4.3).

Both are separable: a video of T x H x W tokens needs the tables of T, H and W positions, not of their product. Tables
are made once in float64 and kept as float32 for each device. They are no buffers of the model: casting it to bfloat16
does not touch them, and the state dict has none.

Both serve a shard of the sequence, given the indices of its tokens in the order (t h w).
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Position = Literal["absolute", "rotary"]

SPATIAL_STEP = 2.0  # spatial_interpolation_scale 0.5 of the published model: positions 0, 2, 4 ...
BASE = 10_000.0


class Grid(NamedTuple):
    """The tokens of a video along each axis."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width


def add_absolute(tokens: Tensor, grid: Grid, indices: Tensor | None = None) -> None:
    """Add the 3D sin-cos position embedding to tokens [B, n, D], in place.

    Channels are [time D/4 | width 3D/8 | height 3D/8], each [sin | cos]. The tables are constants, so autograd does not
    see the addition and stores nothing for it. ``tokens`` must come from an operation that does not save its output.

    Args:
        indices: int64 [n], which tokens of the grid these are; by default all, in order.
    """
    tables = _tables(grid, tokens.shape[-1], SPATIAL_STEP, tokens.device)
    time, height, width = (table.flatten(1) for table in tables)
    parts = tokens.detach().split([time.shape[1], width.shape[1], height.shape[1]], dim=-1)
    if indices is None:
        axes = (time[:, None, None], width[None, None, :], height[None, :, None])
        for part, table in zip(parts, axes, strict=True):
            part.unflatten(1, grid).add_(table)
    else:
        t, h, w = _coordinates(grid, indices)
        for part, rows in zip(parts, (time[t], width[w], height[h]), strict=True):
            part.add_(rows)


def absolute(grid: Grid, dim: int, indices: Tensor | None = None, device: torch.device | str = "cpu") -> Tensor:
    """The position embedding by itself: float32 [n, dim]."""
    count = grid.tokens if indices is None else len(indices)
    table = torch.zeros(1, count, dim, device=device)
    add_absolute(table, grid, indices)
    return table[0]


class Rotation(NamedTuple):
    """The angles of each token's rotation: float32 [n, head_dim / 2] each."""

    cos: Tensor
    sin: Tensor


def rotary(grid: Grid, head_dim: int, indices: Tensor | None = None, device: torch.device | str = "cpu") -> Rotation:
    """The rotation of each token: a quarter of the head's pairs turn with time, 3/8 with height, 3/8 with width."""
    if indices is None:
        indices = torch.arange(grid.tokens, device=device)
    tables = _tables(grid, head_dim, 1.0, torch.device(device))
    rows = [table[index] for table, index in zip(tables, _coordinates(grid, indices), strict=True)]
    sin, cos = torch.cat(rows, dim=-1).unbind(1)
    return Rotation(cos, sin)


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of neighbouring channels of [B, tokens, heads, head_dim] by its token's angle."""
    cos, sin = (part[:, None] for part in rotation)
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(heads)


def check_divides(position: str, inner_dim: int, head_dim: int) -> None:
    """ValueError if the channels cannot be shared out to the three axes, or if there is no such embedding."""
    if position not in ("absolute", "rotary"):
        raise ValueError(f'position is "absolute" or "rotary", not "{position}"')
    name, dim = ("attention_head_dim", head_dim) if position == "rotary" else ("the width", inner_dim)
    if dim % 16:
        raise ValueError(f"{position} positions split {name} 2:3:3 in pairs, so it must be a multiple of 16, not {dim}")


def _coordinates(grid: Grid, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return indices // (grid.height * grid.width), indices // grid.width % grid.height, indices % grid.width


def _tables(grid: Grid, dim: int, spatial_step: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sines and cosines of the positions along each axis: [T, 2, dim/8], [H, 2, 3/16 dim], [W, 2, 3/16 dim]."""
    return (
        _sincos(grid.frames, dim // 4, 1.0, device),
        _sincos(grid.height, dim // 8 * 3, spatial_step, device),
        _sincos(grid.width, dim // 8 * 3, spatial_step, device),
    )


@lru_cache(maxsize=1024)
def _sincos(count: int, dim: int, step: float, device: torch.device) -> Tensor:
    """Float32 [count, 2, dim/2]: sine and cosine of position * BASE^(-i / (dim/2)), position = 0, step, 2 step ..."""
    # Made outside of inference mode, as training may use them later; in float64 on the CPU, as not all devices have it.
    with torch.inference_mode(False):
        positions = torch.arange(count, dtype=torch.float64, device="cpu") * step
        frequencies = BASE ** -(torch.arange(dim // 2, dtype=torch.float64, device="cpu") / (dim / 2))
        angles = positions[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=1).float().to(device)
