"""The parts of the SD3.5-Large transformer (arXiv 2403.03206, section 4), with the state-dict keys of diffusers.

Video and text tokens are two streams with weights of their own, which meet in attention. Each block is told the time
and the pooled text through shifts, scales and gates (adaLN), one for each sample.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention, sdpa
from models.autograd import modulate, rms_norm
from models.position import Rotation, rotate

FREQUENCIES = 128
MLP_RATIO = 4

Change = tuple[Tensor, Tensor]  # shift and scale, [B, 1, dim] each


class PatchEmbedding(nn.Module):
    """Patches [B, n, C p p] in the order (c p q) -> tokens [B, n, dim]."""

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        # A convolution in the checkpoint; as its stride is its kernel, it is a linear layer of the patches.
        self.proj = nn.Conv2d(channels, dim, patch_size, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.proj.bias)


class Embedder(nn.Module):
    """Two linear layers with a SiLU between: [B, inputs] -> [B, dim]."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x.to(self.linear_1.weight.dtype))))


class ConditionEmbedding(nn.Module):
    """Timestep [B] and pooled text [B, P] -> condition [B, dim], its SiLU already taken: every block starts with it."""

    def __init__(self, pooled_dim: int, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = Embedder(2 * FREQUENCIES, dim)
        self.text_embedder = Embedder(pooled_dim, dim)

    def forward(self, timestep: Tensor, pooled: Tensor) -> Tensor:
        return F.silu(self.timestep_embedder(timestep_sinusoid(timestep)) + self.text_embedder(pooled))


def timestep_sinusoid(timestep: Tensor) -> Tensor:
    """Timesteps [B], 0 to 1000 -> float32 [B, 256]: cosines, then sines, of frequencies 1 to 1/10000."""
    angles = timestep.float()[:, None] * _frequencies(timestep.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@lru_cache
def _frequencies(device: torch.device) -> Tensor:
    """Float32 [128], rounded as in training: a last bit of a frequency is 1e-4 of the angle at timestep 1000."""
    with torch.inference_mode(False):
        exponents = torch.arange(FREQUENCIES, dtype=torch.float32, device="cpu") * -math.log(10_000) / FREQUENCIES
        return exponents.double().exp().float().to(device)  # float32 exponentials differ between processors


class Modulation(nn.Module):
    """Condition [B, dim] -> the shifts, scales and gates of one stream of a block, [B, 1, dim] each."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(dim, parts * dim)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(condition)[:, None].chunk(self.parts, dim=-1)


class Expansion(nn.Module):
    """The first layer of ``FeedForward``; the checkpoint has it in a module of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, MLP_RATIO * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear; four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Expansion(dim), nn.Identity(), nn.Linear(MLP_RATIO * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        expand, _, contract = self.net
        inside = expand(x)
        if not torch.is_grad_enabled():
            return contract(torch.ops.aten.gelu_(inside, approximate="tanh"))
        return contract(F.gelu(inside, approximate="tanh"))


class HeadNorm(nn.RMSNorm):
    """RMS norm of each head's query or key: [..., head_dim], float32 inside."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class JointAttention(nn.Module):
    """Multi-head attention over both streams, queries and keys RMS-normalised by head.

    ``attend`` is how the joined streams attend to each other: ``models.attention`` says what it gets and gives.
    """

    def __init__(self, heads: int, head_dim: int, last: bool) -> None:
        super().__init__()
        dim = heads * head_dim
        self.head_dim = head_dim
        self.attend: Attention = sdpa
        self.norm_q = HeadNorm(head_dim)
        self.norm_k = HeadNorm(head_dim)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.add_k_proj = nn.Linear(dim, dim)
        self.add_v_proj = nn.Linear(dim, dim)
        self.add_q_proj = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.to_add_out = None if last else nn.Linear(dim, dim)
        self.norm_added_q = HeadNorm(head_dim)
        self.norm_added_k = HeadNorm(head_dim)

    def forward(
        self, video: Tensor, text: Tensor, video_change: Change, text_change: Change, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor | None]:
        """Both streams, [B, n, dim] and [B, s, dim], modulated and attended to, in the same shapes.

        Of the last block's text there is None, as nothing reads it.
        """
        joined = self._project(modulate(video, *video_change), modulate(text, *text_change), rotation)
        out = self.attend(*joined, video.shape[1]).transpose(1, 2).flatten(2)
        del joined
        video_out, text_out = out.split([video.shape[1], text.shape[1]], dim=1)
        return self.to_out[0](video_out), None if self.to_add_out is None else self.to_add_out(text_out)

    def _project(self, video: Tensor, text: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of the joined streams, [B, heads, n + s, head_dim] each."""
        layers = (
            (self.to_q, self.norm_q, self.add_q_proj, self.norm_added_q),
            (self.to_k, self.norm_k, self.add_k_proj, self.norm_added_k),
        )
        query, key = (
            _join(_turn(norm(self._heads(layer(video))), rotation), text_norm(self._heads(text_layer(text))))
            for layer, norm, text_layer, text_norm in layers
        )
        return query, key, _join(self._heads(self.to_v(video)), self._heads(self.add_v_proj(text)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


def _turn(x: Tensor, rotation: Rotation | None) -> Tensor:
    return x if rotation is None else rotate(x, rotation)


def _join(video: Tensor, text: Tensor) -> Tensor:
    """[B, n, heads, head_dim] and [B, s, heads, head_dim] -> [B, heads, n + s, head_dim], in memory as they were."""
    return torch.cat([video, text], dim=1).transpose(1, 2)


class JointBlock(nn.Module):
    """One block of the transformer. In the ``last``, text ends in attention (``context_pre_only`` in diffusers)."""

    def __init__(self, heads: int, head_dim: int, last: bool) -> None:
        super().__init__()
        dim = heads * head_dim
        self.last = last
        self.norm1 = Modulation(dim, 6)
        self.norm1_context = Modulation(dim, 2 if last else 6)
        self.attn = JointAttention(heads, head_dim, last)
        self.ff = FeedForward(dim)
        self.ff_context = None if last else FeedForward(dim)

    def forward(
        self, video: Tensor, text: Tensor, condition: Tensor, rotation: Rotation | None = None
    ) -> tuple[Tensor, Tensor]:
        """Video [B, n, dim], text [B, s, dim], condition [B, dim] -> video and text of the same shapes."""
        shift, scale, *video_rest = self.norm1(condition)
        text_shift, text_scale, *text_rest = self.norm1_context(condition)
        if self.last:
            text_shift, text_scale = text_scale, text_shift  # so it is stored
        video_out, text_out = self.attn(video, text, (shift, scale), (text_shift, text_scale), rotation)
        video = _add(self.ff, video, video_out, *video_rest)
        return video, text if self.ff_context is None else _add(self.ff_context, text, text_out, *text_rest)


def _add(
    layer: FeedForward, x: Tensor, attended: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, layer_gate: Tensor
) -> Tensor:
    """A stream after its attention, and after its feed-forward layer; the gates are [B, 1, dim]."""
    x = torch.addcmul(x, gate, attended)
    return torch.addcmul(x, layer_gate, layer(modulate(x, shift, scale)))
