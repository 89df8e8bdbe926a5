"""The cross model of MPS: image tokens look at the words of the prompt that matter (Zhang et al., 2024, section 4).

Each layer is two residual blocks. The first adds cross-attention to the text and a feed-forward network, side by side;
the second self-attention with rotary positions and a feed-forward network, from one fused projection. Queries have many
heads, keys and values one. Names are those of the published checkpoint, so its weights load as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROTARY_BASE = 10_000.0


class CrossModel(nn.Module):
    """Layers of cross-attention to text and self-attention, without a last normalisation."""

    def __init__(self, dim: int, layers: int, heads: int, dim_head: int = 64, ff_mult: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _Residual(_CrossAttention(dim, heads, dim_head, ff_mult)),
                    _Residual(_ParallelBlock(dim, heads, dim_head, ff_mult)),
                ]
            )
            for _ in range(layers)
        )

    def forward(self, image: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """Image tokens [B, N, dim] that have looked at text tokens [B, T, dim] -> [B, N, dim].

        Args:
            mask: added to the attention's logits, 0 or -inf: [B, 1, T] for all image tokens, or [B, N, T].
        """
        for layer in self.layers:
            cross, parallel = layer.children()
            image = parallel(cross(image, text, mask))
        return image


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *others: Tensor | None) -> Tensor:
        return x + self.fn(x, *others)


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, ff_mult: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(dim, 2 * ff_mult * dim, bias=False), _SwiGLU(), nn.Linear(ff_mult * dim, dim, bias=False)
        )

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        x = self.norm(x)
        key, value = self.to_kv(text).chunk(2, dim=-1)
        attended = _attend(_split(self.to_q(x), self.heads), key, value, mask)
        return self.to_out(attended) + self.ff(x)


class _ParallelBlock(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, ff_mult: int) -> None:
        super().__init__()
        self.heads = heads
        self.widths = (heads * dim_head, dim_head, dim_head, 2 * ff_mult * dim)
        self.norm = _LayerNorm(dim)
        self.rotary_emb = _Rotary(dim_head)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff_out = nn.Sequential(_SwiGLU(), nn.Linear(ff_mult * dim, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, hidden = self.fused_attn_ff_proj(self.norm(x)).split(self.widths, dim=-1)
        rotate = self.rotary_emb(x.shape[1])
        attended = _attend(rotate(_split(query, self.heads)), rotate(key), value, None)
        return self.attn_out(attended) + self.ff_out(hidden)


class _Rotary(nn.Module):
    """Rotary positions 0, 1, ...: the first half of the features turns against the second.

    The frequencies are part of the checkpoint. They may be made more precise than stored, and never less: in bfloat16
    the angle of token 256 would be off by half a radian.
    """

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", ROTARY_BASE ** -(torch.arange(0, dim, 2).float() / dim))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype.itemsize < before.dtype.itemsize and not before.is_meta:
            self.inv_freq = before.to(self.inv_freq.device)
        return self

    def forward(self, tokens: int) -> Callable[[Tensor], Tensor]:
        exact = torch.promote_types(self.inv_freq.dtype, torch.float32)
        angles = torch.arange(tokens, device=self.inv_freq.device, dtype=exact)[:, None] * self.inv_freq
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

        def rotate(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)

        return rotate


class _LayerNorm(nn.Module):
    """A layer norm whose ``bias`` is a buffer: stored, and never trained."""

    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class _SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries [B, heads, N, d] to one head of keys and values [B, T, d] -> [B, N, heads * d]."""
    bias = None if mask is None else mask.to(query.dtype)[:, None].expand(-1, query.shape[1], query.shape[2], -1)
    shape = -1, query.shape[1], -1, -1
    key, value = (tensor[:, None].expand(shape) for tensor in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
