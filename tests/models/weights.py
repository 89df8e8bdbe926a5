"""Deterministic weights, with which the golden outputs in ``tests/data`` were computed."""

import math
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)

TINY = {"num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 16}
SMALL = {**TINY, "joint_attention_dim": 24, "pooled_projection_dim": 20}


def drawn(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Values float64 for the weight of this name, from a generator that is seeded by the name."""
    values = np.asarray(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape)))
    if len(shape) >= 2:
        values = values / math.sqrt(math.prod(shape[1:]))
    else:
        values = 0.1 * values + (1 if name.endswith("weight") else 0)
    return torch.from_numpy(np.asarray(values))


def fill(model: Net) -> Net:
    """Give every weight the values that are drawn for its name."""
    model.load_state_dict(
        {name: drawn(name, tensor.shape).to(tensor.dtype) for name, tensor in model.state_dict().items()}
    )
    return model


def inputs(frames: int = 3, height: int = 8, width: int = 12, batch: int = 2, text: int = 7) -> dict[str, torch.Tensor]:
    """What a model of size SMALL is called with."""
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(batch, 16, frames, height, width, generator=generator),
        "encoder_hidden_states": torch.randn(batch, text, 24, generator=generator),
        "pooled_projections": torch.randn(batch, 20, generator=generator),
        "timestep": torch.rand(batch, generator=generator) * 1000,
    }
