"""The gradients against autograd's own, by differences, and what is kept for them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.autograd import EPS, modulate, rms_norm


def plain_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


CASES = [
    (modulate, plain_modulate, [(2, 5, 8), (2, 1, 8), (2, 1, 8)]),
    (rms_norm, plain_rms_norm, [(2, 5, 3, 8), (8,)]),
]


@pytest.mark.parametrize(("ours", "plain", "shapes"), CASES)
def test_values_and_gradients_are_those_of_the_plain_operators(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.allclose(ours(*tensors), plain(*tensors), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(ours, tensors)


@pytest.mark.parametrize(("ours", "plain", "shapes"), CASES)
def test_less_is_kept_for_the_backward_pass(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    def kept(function: Callable[..., Tensor]) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        tensors = [torch.randn(s).requires_grad_() for s in shapes]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = function(*tensors)  # noqa: F841
            return sum(sizes.values())

    assert kept(ours) < kept(plain)


def test_bfloat16_is_normalised_in_float32() -> None:
    x = torch.full((1, 4096), 200.0, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, torch.ones(4096, dtype=torch.bfloat16)), torch.ones_like(x))
