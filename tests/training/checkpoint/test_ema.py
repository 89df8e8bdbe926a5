"""Averaged weights; that they are the same on many ranks is in test_parallel."""

import pytest
import torch

from models.transformer import ContentVTransformer
from tests.models.weights import SMALL, fill
from training.checkpoint.ema import Ema


def model() -> ContentVTransformer:
    return fill(ContentVTransformer(**SMALL))


def test_the_average_is_the_weighted_sum_of_all_steps() -> None:
    network = model()
    ema, weight = Ema(network, 0.75), network.proj_out.bias
    expected = weight.detach().double().clone()
    for step in range(5):
        with torch.no_grad():
            weight.fill_(float(step))
        ema.update()
        expected = 0.75 * expected + 0.25 * step
    assert torch.allclose(ema.state["proj_out.bias"].double(), expected, rtol=1e-6)
    assert torch.equal(weight, torch.full_like(weight, 4.0))


def test_weights_of_half_precision_are_not_averaged() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        Ema(model().bfloat16(), 0.999)


def test_the_model_has_the_average_only_meanwhile() -> None:
    network = model()
    ema = Ema(network, 0.5)
    average = {name: tensor.clone() for name, tensor in ema.state.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    trained = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    held = [parameter.data_ptr() for parameter in network.parameters()]
    with pytest.raises(KeyError), ema.applied(network):
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter, average[name])
        raise KeyError
    assert [parameter.data_ptr() for parameter in network.parameters()] == held  # as FSDP and the optimiser want
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, trained[name])
        assert torch.equal(ema.state[name], average[name])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_averages_nothing_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        Ema(model(), decay)
