import pytest
import torch

from benchmarks.transformer import SIZES, Size, peak_bytes, steps
from models.position import Grid
from models.transformer import TransformerConfig


def test_peak_memory_is_what_is_allocated_at_once() -> None:
    def step() -> None:
        for _ in range(3):
            torch.empty(1_000_000).add(1)

    assert 8_000_000 <= peak_bytes(step) < 8_100_000


@pytest.mark.parametrize("kind", ["forward", "forward+backward"])
def test_the_transformer_takes_less_memory_than_the_stock_one(kind: str) -> None:
    ours, stock = steps(SIZES["tiny"], "cpu", torch.float32)[kind]
    assert peak_bytes(ours) < 0.85 * peak_bytes(stock)


def test_both_models_are_given_as_many_tokens() -> None:
    for size in SIZES.values():
        assert size.video.tokens == size.image.tokens
    with pytest.raises(ValueError, match="720 video tokens against 700"):
        Size(TransformerConfig(), Grid(5, 12, 12), Grid(1, 25, 28))
