import torch
import torch.nn.functional as F

from models.blocks import FeedForward, timestep_sinusoid


def test_a_feed_forward_layer_is_linear_gelu_linear() -> None:
    torch.manual_seed(0)
    layer, x = FeedForward(64), torch.randn(2, 5, 64, requires_grad=True)
    plain = layer.net[2](F.gelu(layer.net[0].proj(x), approximate="tanh"))
    assert torch.allclose(layer(x), plain, atol=1e-6)
    with torch.no_grad():  # another way, in place
        assert torch.allclose(layer(x), plain, atol=1e-6)


def test_the_sinusoid_of_time_tells_neighbouring_sampling_steps_apart() -> None:
    sinusoid = timestep_sinusoid(torch.tensor([1000.0, 998.801, 0.0]))
    assert sinusoid.shape == (3, 256)
    assert (sinusoid[0] - sinusoid[1]).abs().max() > 0.5
    assert torch.equal(sinusoid[2], torch.tensor([1.0, 0.0]).repeat_interleave(128))
