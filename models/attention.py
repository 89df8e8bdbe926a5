"""Joint attention of video and text tokens, behind one seam.

Every block calls its attention with the joined tokens, queries and keys normalised::

    attention(query, key, value, video_tokens) -> output        [B, heads, tokens, head_dim] each

Tokens are in the order [video, text]; ``video_tokens`` is how many of them are the video's. All attend to all: there
are no masks. So another processor brings another kernel ("npu" is one), and another way to spread the work wraps one:
with sequence parallelism, the tokens are one rank's shards of both streams, and the wrapper exchanges tokens for heads
(padding 38 heads to 40), drops what was padded, calls the kernel, and exchanges back.

Memory is laid out as [B, tokens, heads, head_dim], as the projections write it, whatever the shape says.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]

NPU_WINDOW = 65_536


def sdpa(query: Tensor, key: Tensor, value: Tensor, video_tokens: int) -> Tensor:
    """PyTorch's scaled dot product attention, whichever of its backends fits the device."""
    return F.scaled_dot_product_attention(query, key, value)


def npu(query: Tensor, key: Tensor, value: Tensor, video_tokens: int) -> Tensor:
    """Ascend's fused attention (``torch_npu.npu_fusion_attention``), without masks.

    Its window reaches NPU_WINDOW tokens to either side; longer sequences get one that covers them whole.
    """
    _, heads, tokens, head_dim = query.shape
    window = max(NPU_WINDOW, tokens)
    return _torch_npu().npu_fusion_attention(
        query,
        key,
        value,
        head_num=heads,
        input_layout="BNSD",
        scale=head_dim**-0.5,
        pre_tockens=window,
        next_tockens=window,
        keep_prob=1.0,
        sync=False,
        inner_precise=0,
    )[0]


def _torch_npu() -> Any:
    try:
        return importlib.import_module("torch_npu")
    except ImportError as error:
        raise RuntimeError(
            'attention "npu" needs an Ascend NPU and torch_npu, which is not installed here: '
            'uv pip install "contentv[npu]", or choose attention "sdpa"'
        ) from error


KERNELS: dict[str, Attention] = {"sdpa": sdpa, "npu": npu}


def kernel(name: str) -> Attention:
    """The attention of that name.

    Raises:
        ValueError: there is none.
        RuntimeError: this machine cannot run it; said here, before any work.
    """
    if name not in KERNELS:
        raise ValueError(f'no attention is named "{name}"; there are {", ".join(KERNELS)}')
    if name == "npu":
        _torch_npu()
    return KERNELS[name]


def without_padding(attention: Attention, real_video: int, real_text: int) -> Attention:
    """``attention`` for streams whose ends are padding: it is dropped, never masked, and comes back as zeros.

    Args:
        real_video, real_text: how many tokens at the start of each stream are real.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, video_tokens: int) -> Tensor:
        lengths = [video_tokens, query.shape[2] - video_tokens]
        real = [real_video, real_text]

        def drop(x: Tensor) -> Tensor:
            return torch.cat([part[:, :, :n] for part, n in zip(x.split(lengths, 2), real, strict=True)], dim=2)

        out = attention(drop(query), drop(key), drop(value), real_video)
        parts = zip(out.split(real, 2), lengths, real, strict=True)
        return torch.cat([F.pad(part, (0, 0, 0, padded - n)) for part, padded, n in parts], dim=2)

    return attend
