import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import kernel, sdpa
from models.transformer import ContentVTransformer, set_attention
from tests.models.weights import SMALL, fill, inputs


class StandInNPU(ModuleType):
    """``torch_npu`` 2.13 with its fused attention, computed on the CPU: its defaults, and what it refuses.

    Read from its wheel and documentation; nothing was run on an NPU.
    """

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
        padding_mask: Tensor | None = None,
        atten_mask: Tensor | None = None,
        scale: float = 1.0,
        keep_prob: float = 1.0,
        pre_tockens: int = 2147483647,
        next_tockens: int = 2147483647,
        inner_precise: int = 0,
        sync: bool = False,
    ) -> tuple[Tensor, ...]:
        if input_layout not in ("BSH", "SBH", "BSND", "BNSD", "TND"):
            raise RuntimeError(f"input_layout {input_layout!r} is not supported")
        by_head = {"BNSD": lambda x: x, "BSND": lambda x: x.transpose(1, 2)}[input_layout]
        copied = [not x.is_contiguous() for x in (query, key, value)]
        query, key, value = map(by_head, (query, key, value))
        if query.shape[1] != head_num or query.shape != key.shape or query.shape != value.shape:
            raise RuntimeError(f"{head_num} heads in layout {input_layout} are not those of {tuple(query.shape)}")
        if query.dtype == torch.float64:
            raise RuntimeError("the device has no float64")
        if padding_mask is not None:
            raise RuntimeError("padding_mask is not supported")
        if not 0 < keep_prob <= 1 or inner_precise not in (0, 1, 2):
            raise RuntimeError("keep_prob or inner_precise is out of range")
        tokens = query.shape[2]
        call = SimpleNamespace(tokens=tokens, pre=pre_tockens, next=next_tockens, sync=sync)
        self.calls.append(SimpleNamespace(**vars(call), layout=input_layout, copied=any(copied)))
        if query.is_meta:
            return (by_head(torch.empty_like(query)), *[query] * 6)
        distance = torch.arange(tokens)[None] - torch.arange(tokens)[:, None]
        outside = (distance > next_tockens) | (-distance > pre_tockens)
        if atten_mask is not None:
            if atten_mask.dtype not in (torch.bool, torch.uint8):
                raise RuntimeError(f"atten_mask is bool or uint8, and True discards; not {atten_mask.dtype}")
            outside = outside | atten_mask.bool()
        if outside.all(-1).any():
            raise RuntimeError("a row of the mask discards all keys")
        scores = (query @ key.transpose(2, 3) * scale).masked_fill(outside, -torch.inf)
        statistics = [scores.amax(-1), scores.logsumexp(-1)]
        return by_head(scores.softmax(-1) @ value).contiguous(), *statistics, *[torch.empty(0)] * 4


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


@pytest.mark.parametrize("by_token", [True, False])
def test_the_npu_is_told_the_layout_that_tensors_have_and_copies_none(torch_npu: StandInNPU, by_token: bool) -> None:
    """By token as the projections write them, by head as the exchange of sequence parallelism does."""
    query, key, value = torch.randn(3, 2, 13, 4, 16).transpose(2, 3) if by_token else torch.randn(3, 2, 4, 13, 16)
    out = kernel("npu")(query, key, value, 8)
    assert torch.allclose(out, sdpa(query, key, value, 8), atol=1e-5)
    (call,) = torch_npu.calls
    assert call.layout == ("BSND" if by_token else "BNSD")
    assert not call.copied
    assert out.shape == query.shape and out.stride() == query.stride()


def test_no_block_of_a_model_has_its_tensors_copied(torch_npu: StandInNPU) -> None:
    model = fill(ContentVTransformer(**SMALL))
    set_attention(model, "npu")
    model(**inputs())
    assert [(call.layout, call.copied) for call in torch_npu.calls] == [("BSND", False)] * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"atten_mask": torch.zeros(13, 13)}, "bool or uint8"),
        ({"atten_mask": torch.ones(13, 13, dtype=torch.bool)}, "discards all keys"),
        ({"padding_mask": torch.ones(13)}, "not supported"),
        ({"input_layout": "BSND"}, "heads in layout"),
        ({"input_layout": "BHSD"}, "not supported"),
    ],
)
def test_the_stand_in_refuses_what_the_operator_refuses(
    torch_npu: StandInNPU, change: dict[str, Any], words: str
) -> None:
    query = torch.randn(2, 4, 13, 16)
    with pytest.raises(RuntimeError, match=words):
        torch_npu.npu_fusion_attention(query, query, query, **{"head_num": 4, "input_layout": "BNSD"} | change)


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
