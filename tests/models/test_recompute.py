from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.transformer import peak_bytes
from models.flops import recomputed_flops
from models.recompute import Recompute
from models.transformer import ContentVTransformer, TransformerConfig
from tests.models.weights import SMALL, fill, inputs

POLICIES = [
    Recompute("attention"),
    Recompute("attention", every=2),
    Recompute("full"),
    Recompute("full", every=3),
]
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def gradients(model: ContentVTransformer) -> Iterator[Tensor]:
    model.zero_grad()
    model(**inputs()).square().mean().backward()
    return (parameter.grad for parameter in model.parameters())


@pytest.mark.parametrize("position", ["absolute", "rotary"])
@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_the_same_to_the_last_bit(policy: Recompute, position: str) -> None:
    model = fill(ContentVTransformer(**SMALL, position=position))
    expected = [gradient.clone() for gradient in gradients(model)]
    model.recompute = policy
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), expected, strict=True))


def test_each_policy_takes_less_memory_than_the_one_that_keeps_more() -> None:
    model = fill(ContentVTransformer(**{**SMALL, "num_layers": 6}))
    arguments = inputs(height=32, width=32)

    def step() -> None:
        model(**arguments).square().mean().backward()

    step()  # leaves the gradients allocated
    peaks = []
    for policy in (Recompute(), Recompute("attention"), Recompute("full")):
        model.recompute = policy
        peaks.append(peak_bytes(step))
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.4 * peaks[0]
    model.recompute = Recompute("full", every=2)
    assert peaks[-1] < peak_bytes(step) < peaks[0]


@pytest.mark.parametrize("policy", [Recompute("full"), Recompute("attention"), Recompute("full", every=2)])
def test_what_is_computed_again_is_what_the_policy_says(policy: Recompute) -> None:
    model = fill(ContentVTransformer(**SMALL))

    def count() -> int:
        attention = {CPU_ATTENTION: lambda q, k, v, *_, out_shape=None, **__: 4 * q[0] * q[1] * q[2] * k[2] * q[3]}
        with FlopCounterMode(display=False, custom_mapping=attention) as counter:
            model(**inputs()).square().mean().backward()
        return counter.get_total_flops()

    before = count()
    model.recompute = policy
    batch = 2
    again = recomputed_flops(TransformerConfig(**SMALL), policy, video_tokens=72, text_tokens=7)
    assert count() - before == batch * again > 0


def test_nothing_is_recorded_where_there_is_no_gradient() -> None:
    model = fill(ContentVTransformer(**SMALL))
    with torch.no_grad():
        expected = model(**inputs())
        model.recompute = Recompute("attention")
        assert torch.equal(model(**inputs()), expected)


def test_a_policy_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match='recompute mode is "none", "attention" or "full", not "selective"'):
        Recompute("selective")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n must be 1 or more"):
        Recompute("full", every=0)
    with pytest.raises(ValueError, match="recomputes no block"):
        Recompute(every=2)
