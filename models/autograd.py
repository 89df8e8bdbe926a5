"""Two pieces of every block, so written that autograd keeps less of them for the backward pass.

For each channel of a video token, a block keeps 24 numbers when it is written plainly, and 20 so. All is composed of
PyTorch's own operators, so it runs on every device.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

EPS = 1e-6


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then ``(1 + scale) * x + shift``; keeps x, not what was normalised.

    For one sample that is a layer norm with weights, which is one fused operator; so it is done sample by sample.

    Args:
        x: [B, n, dim].
        shift, scale: [B, 1, dim].
    """
    samples = zip(x, (1 + scale).unbind(), shift.unbind(), strict=True)
    parts = [F.layer_norm(one, one.shape[-1:], weight[0], bias[0], EPS) for one, weight, bias in samples]
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm over the last axis, in float32 (or wider) inside; keeps x, not what was normalised.

    Args:
        x: [..., dim].
        weight: [dim].
    """
    # CUDA has it fused, both ways; elsewhere PyTorch composes it of five operators.
    return F.rms_norm(x, weight.shape, weight, EPS) if x.is_cuda else _RMSNorm.apply(x, weight)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        rstd = (norm.square_() / x.shape[-1] + EPS).rsqrt_()
        ctx.save_for_backward(x, rstd, weight)
        return (x * rstd).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        x, rstd, weight = ctx.saved_tensors
        normed = x * rstd
        product = grad * normed
        along = (product @ weight.to(product.dtype)).unsqueeze(-1) / x.shape[-1]
        grad_x = (grad * weight).addcmul(normed, along, value=-1).mul(rstd)
        return grad_x.to(x.dtype), product.flatten(0, -2).sum(0)
