import pytest
import torch
from diffusers.models.embeddings import get_3d_sincos_pos_embed
from torch.utils._python_dispatch import TorchDispatchMode

from models.position import Grid, absolute, add_absolute, rotary, rotate
from models.transformer import ContentVTransformer
from tests.models.weights import SMALL, fill, inputs


def test_the_embedding_is_the_published_one() -> None:
    table = absolute(Grid(4, 5, 6), 2432).view(4, 5, 6, 2432)
    golden = torch.tensor([0.841471, 0.540302, -0.279415, 0.960170, -0.756802, -0.653644])
    assert (table[1, 2, 3, [0, 304, 608, 1064, 1520, 1976]] - golden).abs().max() < 1e-6
    published = get_3d_sincos_pos_embed(
        2432, (6, 5), 4, spatial_interpolation_scale=0.5, temporal_interpolation_scale=1.0
    )
    assert torch.equal(table.flatten(1, 2), published.float())


def test_a_shard_gets_the_positions_of_its_tokens() -> None:
    grid = Grid(4, 5, 6)
    indices = torch.tensor([119, 0, 31, 31])
    assert torch.equal(absolute(grid, 64, indices), absolute(grid, 64)[indices])
    whole, shard = rotary(grid, 32), rotary(grid, 32, indices)
    assert torch.equal(shard.cos, whole.cos[indices])
    assert torch.equal(shard.sin, whole.sin[indices])


def test_adding_it_leaves_the_gradient_as_it_is_and_stores_nothing() -> None:
    weight = torch.randn(32, 8, requires_grad=True)
    patches = torch.randn(2, 24, 8)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        tokens = patches @ weight.T
        before = len(saved)
        add_absolute(tokens, Grid(1, 4, 6), None)
    assert len(saved) == before
    assert torch.allclose(tokens, patches @ weight.T + absolute(Grid(1, 4, 6), 32))
    tokens.sum().backward()
    assert torch.allclose(weight.grad, patches.sum((0, 1)).expand(32, 8))


def test_it_is_no_state_of_the_model_and_so_not_rounded_with_it() -> None:
    model = fill(ContentVTransformer(**SMALL)).bfloat16()
    assert not list(model.buffers())
    assert absolute(Grid(1, 4, 6), 64).dtype == torch.float32
    assert rotary(Grid(1, 4, 6), 64).cos.dtype == torch.float32


class Dtypes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = operator(*args, **kwargs or {})
        self.seen |= {out.dtype} if isinstance(out, torch.Tensor) else set()
        return out


@pytest.mark.parametrize("position", ["absolute", "rotary"])
def test_the_tables_are_made_once(position: str) -> None:
    model = fill(ContentVTransformer(**SMALL, position=position))
    arguments = inputs()
    with torch.inference_mode():
        first = model(**arguments)
    with Dtypes() as dtypes:
        second = model(**arguments)
    assert torch.float64 not in dtypes.seen
    assert torch.equal(first, second)
    second.square().mean().backward()  # tables first made for inference serve training


def test_the_tables_go_where_the_tokens_are() -> None:
    assert absolute(Grid(2, 2, 2), 32, device="meta").is_meta
    assert rotary(Grid(2, 2, 2), 32, device="meta").cos.is_meta


def test_rotary_attention_depends_on_relative_positions_only() -> None:
    grid = Grid(6, 7, 8)
    query, key = torch.randn(2, 1, 1, 1, 64, dtype=torch.float64)

    def index(t: int, h: int, w: int) -> torch.Tensor:
        return torch.tensor([(t * grid.height + h) * grid.width + w])

    def score(a: tuple[int, int, int], b: tuple[int, int, int]) -> torch.Tensor:
        return (rotate(query, rotary(grid, 64, index(*a))) * rotate(key, rotary(grid, 64, index(*b)))).sum()

    assert torch.allclose(score((0, 1, 2), (3, 2, 6)), score((2, 4, 1), (5, 5, 5)), atol=1e-6)
    for moved in ((4, 2, 6), (3, 3, 6), (3, 2, 7)):
        assert not torch.allclose(score((0, 1, 2), (3, 2, 6)), score((0, 1, 2), moved), atol=1e-3)


def test_rotary_turns_a_quarter_of_a_head_with_time_and_leaves_text_as_it_is() -> None:
    still, later = rotary(Grid(2, 1, 1), 64).sin
    assert (later - still).ne(0).sum() == 8  # pairs: 16 of 64 channels
    seen = {}
    for position in ("absolute", "rotary"):
        model = fill(ContentVTransformer(**SMALL, position=position))

        def record(q, k, v, video_tokens, position=position):  # type: ignore[no-untyped-def]
            seen.setdefault(position, (q[:, :, video_tokens:], k[:, :, video_tokens:]))
            return v

        for block in model.transformer_blocks:
            block.attn.attend = record
        with torch.no_grad():
            model(**inputs())
    for absolute_text, rotary_text in zip(*seen.values(), strict=True):
        assert torch.equal(absolute_text, rotary_text)
