import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import kernel, sdpa, without_padding
from models.transformer import ContentVTransformer, set_attention
from tests.models.weights import SMALL, fill, inputs


class StandInNPU(ModuleType):
    """``torch_npu`` with its documented fused attention: what each argument means there, computed on the CPU."""

    def __init__(self) -> None:
        super().__init__("torch_npu")
        self.calls: list[SimpleNamespace] = []

    def npu_fusion_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        head_num: int,
        input_layout: str,
        *,
        scale: float = 1.0,
        keep_prob: float = 1.0,
        pre_tockens: int = 2147483647,
        next_tockens: int = 2147483647,
        inner_precise: int = 0,
        sync: bool = False,
        **other: Any,
    ) -> tuple[Tensor, ...]:
        assert not other, "no masks, no padding of tokens"
        assert input_layout == "BNSD"
        assert query.shape[1] == head_num
        tokens = query.shape[2]
        self.calls.append(SimpleNamespace(tokens=tokens, pre=pre_tockens, next=next_tockens, sync=sync))
        assert keep_prob == 1.0
        assert inner_precise == 0
        if query.is_meta:
            return (torch.empty_like(query),)
        distance = torch.arange(tokens)[None] - torch.arange(tokens)[:, None]
        outside = (distance > next_tockens) | (-distance > pre_tockens)
        scores = (query @ key.transpose(2, 3) * scale).masked_fill(outside, -torch.inf)
        return scores.softmax(-1) @ value, scores.amax(-1), scores.logsumexp(-1)


@pytest.fixture
def torch_npu(monkeypatch: pytest.MonkeyPatch) -> StandInNPU:
    stand_in = StandInNPU()
    monkeypatch.setitem(sys.modules, "torch_npu", stand_in)
    return stand_in


def test_a_model_on_an_npu_gives_the_same_velocity_and_gradient(torch_npu: StandInNPU) -> None:
    model = fill(ContentVTransformer(**SMALL))
    outcomes = []
    for name in ("sdpa", "npu"):
        set_attention(model, name)
        velocity = model(**inputs())
        outcomes.append((velocity, torch.autograd.grad(velocity.square().mean(), model.context_embedder.weight)[0]))
    for ours, theirs in zip(*outcomes, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert [call.tokens for call in torch_npu.calls] == [72 + 7] * 3


@pytest.mark.parametrize(("tokens", "window"), [(65_536, 65_536), (65_537, 65_537), (115_533, 115_533)])
def test_the_npu_window_covers_long_sequences_whole(torch_npu: StandInNPU, tokens: int, window: int) -> None:
    query = torch.empty(1, 2, tokens, 16, device="meta")
    kernel("npu")(query, query, query, tokens - 333)
    (call,) = torch_npu.calls
    assert (call.pre, call.next, call.sync) == (window, window, False)


@pytest.mark.parametrize("name", ["sdpa", "npu"])
def test_padding_is_dropped_not_masked(torch_npu: StandInNPU, name: str) -> None:
    query, key, value = torch.randn(3, 2, 4, 13, 16)
    padded = torch.tensor([0, 1, 2, 3, 4, 8, 9, 10])  # 5 real of 8 video tokens, 3 of 5 text tokens
    query[:, :, [5, 6, 7, 11, 12]] = torch.nan
    out = without_padding(kernel(name), 5, 3)(query, key, value, 8)
    expected = F.scaled_dot_product_attention(query[:, :, padded], key[:, :, padded], value[:, :, padded])
    assert torch.allclose(out[:, :, padded], expected, atol=1e-5)
    assert not out[:, :, [5, 6, 7, 11, 12]].any()
    if name == "npu":
        assert torch_npu.calls[0].tokens == 8


def test_the_npu_is_asked_for_before_any_work() -> None:
    model = ContentVTransformer(**SMALL)
    with pytest.raises(RuntimeError, match=r'needs an Ascend NPU and torch_npu.*choose attention "sdpa"'):
        set_attention(model, "npu")


def test_an_unknown_attention_is_named() -> None:
    with pytest.raises(ValueError, match='no attention is named "flash"; there are sdpa, npu'):
        set_attention(ContentVTransformer(**SMALL), "flash")


def test_heads_and_both_streams_can_be_spread_from_outside() -> None:
    """What Ulysses does: heads are padded to a multiple of the ranks, and each rank attends with some of them."""
    model = fill(ContentVTransformer(**SMALL))
    with torch.no_grad():
        expected = model(**inputs())

    def two_heads_at_a_time(query: Tensor, key: Tensor, value: Tensor, video_tokens: int) -> Tensor:
        assert query.shape == (2, 4, 72 + 7, 16)
        assert video_tokens == 72
        parts = [F.pad(x, (0, 0, 0, 0, 0, 2)).chunk(3, dim=1) for x in (query, key, value)]
        return torch.cat([sdpa(*part, video_tokens) for part in zip(*parts, strict=True)], dim=1)[:, :4]

    set_attention(model, two_heads_at_a_time)
    with torch.no_grad():
        assert torch.allclose(model(**inputs()), expected, atol=1e-5)
