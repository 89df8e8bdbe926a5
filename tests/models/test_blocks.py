import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import WIDE, FeedForward, timestep_sinusoid


def gradients(layer: FeedForward, x: Tensor, out: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out.square().sum(), [x, *layer.parameters()]))


@pytest.mark.parametrize("dim", [64, WIDE])
def test_a_feed_forward_layer_is_linear_gelu_linear_at_any_width(dim: int) -> None:
    torch.manual_seed(0)
    layer, x = FeedForward(dim), torch.randn(2, 5, dim, requires_grad=True)
    plain = layer.net[2](F.gelu(layer.net[0].proj(x), approximate="tanh"))
    out = layer(x)
    assert torch.allclose(out, plain, atol=1e-6)
    for ours, theirs in zip(gradients(layer, x, out), gradients(layer, x, plain), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(layer(x), plain, atol=1e-6)


def test_what_takes_the_place_of_its_last_layer_is_called() -> None:
    layer, x = FeedForward(WIDE), torch.randn(1, 3, WIDE, requires_grad=True)
    seen: list[int] = []
    handle = layer.net[2].register_forward_hook(lambda *_: seen.append(1))
    layer(x)
    handle.remove()
    assert seen == [1]

    class Low(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., :WIDE] * 0 + 7

    layer.net[2] = Low(4 * WIDE, WIDE)
    assert layer(x).eq(7).all()


def test_the_sinusoid_of_time_tells_neighbouring_sampling_steps_apart() -> None:
    sinusoid = timestep_sinusoid(torch.tensor([1000.0, 998.801, 0.0]))
    assert sinusoid.shape == (3, 256)
    assert (sinusoid[0] - sinusoid[1]).abs().max() > 0.5
    assert torch.equal(sinusoid[2], torch.tensor([1.0, 0.0]).repeat_interleave(128))
