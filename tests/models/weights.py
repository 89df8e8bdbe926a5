"""Deterministic weights, with which the golden outputs in ``tests/data`` were computed."""

import math
import zlib
from typing import TypeVar

import numpy as np
import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)

TINY = {"num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 16}
SMALL = {**TINY, "joint_attention_dim": 24, "pooled_projection_dim": 20}


def fill(model: Net) -> Net:
    """Give every weight values drawn from a generator that is seeded by the weight's name."""
    state = model.state_dict()
    for name, tensor in state.items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
        if tensor.ndim >= 2:
            values /= math.sqrt(math.prod(tensor.shape[1:]))
        else:
            values = 0.1 * values + (1 if name.endswith("weight") else 0)
        state[name] = torch.from_numpy(np.asarray(values)).to(tensor.dtype)
    model.load_state_dict(state)
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
