"""Joint attention of video and text tokens, behind one seam.

Every block calls its attention with the joined tokens, queries and keys normalised::

    attention(query, key, value, video_tokens) -> output        [B, heads, tokens, head_dim] each

Tokens are in the order [video, text]; ``video_tokens`` is how many of them are the video's. All attend to all: there
are no masks. So another processor brings another kernel ("npu" is one), and another way to spread the work wraps one:
with sequence parallelism, the tokens are one rank's shards of both streams, and the wrapper exchanges tokens for heads
(padding 38 heads to 40), drops what was padded, calls the kernel, and exchanges back.

Memory is laid out as [B, tokens, heads, head_dim], as the projections write it, whatever the shape says; behind the
exchange of sequence parallelism it is laid out as the shape says.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]

NPU_WINDOW = 65_536


def sdpa(query: Tensor, key: Tensor, value: Tensor, video_tokens: int) -> Tensor:
    """PyTorch's scaled dot product attention, whichever of its backends fits the device."""
    return F.scaled_dot_product_attention(query, key, value)


def npu(query: Tensor, key: Tensor, value: Tensor, video_tokens: int) -> Tensor:
    """Ascend's fused attention (``torch_npu.npu_fusion_attention`` of torch_npu 2.13), without masks.

    The operator is told the order of axes that the tensors have in memory, so that it copies none of them. Its scale
    is 1 unless it is given. Its window reaches NPU_WINDOW tokens to either side; longer sequences get one that covers
    them whole.
    """
    _, heads, tokens, head_dim = query.shape
    window = max(NPU_WINDOW, tokens)
    by_token = query.transpose(1, 2).is_contiguous()  # as the projections write it; after Ulysses it is by head
    tensors = [x.transpose(1, 2) for x in (query, key, value)] if by_token else [query, key, value]
    out: Tensor = _torch_npu().npu_fusion_attention(
        *(x.contiguous() for x in tensors),
        head_num=heads,
        input_layout="BSND" if by_token else "BNSD",
        scale=head_dim**-0.5,
        pre_tockens=window,
        next_tockens=window,
        keep_prob=1.0,
        sync=False,
        inner_precise=0,
    )[0]
    return out.transpose(1, 2) if by_token else out


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
