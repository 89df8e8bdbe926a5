"""Sequence parallelism, applied from outside the model: DeepSpeed-Ulysses (Jacobs et al., arXiv 2309.14509; report,
section 7).

The ranks of a group hold one shard of the video's tokens and one of the text's each. All of the model but attention
treats tokens one by one; in attention, an all-to-all turns shards of tokens with all heads into all tokens with a shard
of heads, and another one turns them back. Where heads or tokens do not divide, they are padded: heads with zeros that
are cut off again, tokens with a repetition that attention never sees. There are no masks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from models.attention import Attention
from models.position import Grid
from models.transformer import ContentVTransformer


@dataclass(frozen=True)
class Shard:
    """The tokens of one stream that a rank holds: ``indices`` int64 [n], of which the first ``real`` are no padding."""

    indices: Tensor
    real: int


def shard_of(tokens: int, group: dist.ProcessGroup, device: torch.device | str = "cpu") -> Shard:
    """This rank's share of so many tokens: as many on each rank, padded by repeating the last."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    each = -(-tokens // ranks)
    indices = torch.arange(rank * each, (rank + 1) * each, device=device)
    return Shard(indices.clamp(max=tokens - 1), min(each, max(0, tokens - rank * each)))


def forward_shard(
    model: ContentVTransformer,
    patches: Tensor,
    text: Tensor,
    pooled: Tensor,
    timestep: Tensor,
    grid: Grid,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Shard]:
    """The model's answer for this rank's shard of the video's tokens.

    Every rank of the group gives the same, whole inputs; the model attends through ``ulysses`` of the same group.

    Args:
        patches: [B, n, C p p] of the whole video, as ``patchify`` makes them.
        text, pooled, timestep, grid: as ``forward_tokens`` takes them, whole.

    Returns:
        [B, real, p p C] and the shard: its padding is cut off. The gradients of the parameters are the sum over
        the ranks, if the loss of each is of its own tokens.
    """
    video, words = (shard_of(count, group, patches.device) for count in (patches.shape[1], text.shape[1]))
    out = model.forward_tokens(patches[:, video.indices], text[:, words.indices], pooled, timestep, grid, video.indices)
    return out[:, : video.real], video


def ulysses(attention: Attention, group: dist.ProcessGroup, video_tokens: int, text_tokens: int) -> Attention:
    """``attention`` for the shards of ``shard_of``, to be given to ``set_attention``.

    Args:
        video_tokens, text_tokens: of the whole sequence, without padding.
    """
    ranks = dist.get_world_size(group)

    def attend(query: Tensor, key: Tensor, value: Tensor, local_video: int) -> Tensor:
        heads, local = query.shape[1], query.shape[2]
        lengths = [local_video, local - local_video]
        # [3, B, heads, tokens, dim], heads padded to a multiple of the ranks
        shards = F.pad(torch.stack([query, key, value]), (0, 0, 0, 0, 0, -heads % ranks))
        by_rank = _AllToAll.apply(shards.unflatten(2, (ranks, -1)).movedim(2, 0), group)  # of tokens, [ranks, 3, ...]
        streams = (part.movedim(0, 3).flatten(3, 4) for part in by_rank.split(lengths, 4))  # all tokens of each stream
        real = [stream[..., :n, :] for stream, n in zip(streams, (video_tokens, text_tokens), strict=True)]
        query, key, value = torch.cat(real, 3).unbind()
        out = attention(query, key, value, video_tokens)
        padded = [
            F.pad(part, (0, 0, 0, n * ranks - part.shape[2])).unflatten(2, (ranks, n))
            for part, n in zip(out.split([video_tokens, text_tokens], 2), lengths, strict=True)
        ]
        back = _AllToAll.apply(torch.cat(padded, 3).movedim(2, 0), group)  # of heads, [ranks, B, heads / ranks, n, dim]
        return back.movedim(0, 1).flatten(1, 2)[:, :heads]

    return attend


class _AllToAll(Function):
    """Rank i's part j becomes rank j's part i; the gradient goes the same way back. Parts are the first axis.

    The exchange is PyTorch's functional one, which returns what it received: recomputation can keep that.
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        sizes = [1] * len(parts)
        collective = torch.ops._c10d_functional
        received = collective.all_to_all_single(parts.contiguous(), sizes, sizes, group.group_name)
        return collective.wait_tensor(received)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _AllToAll.apply(grads[0], ctx.group), None
