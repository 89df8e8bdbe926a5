"""Sequence parallelism changes nothing: answers and gradients are those of one process."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from models.attention import sdpa
from models.recompute import Recompute
from models.transformer import ContentVTransformer, patchify, set_attention, token_grid
from tests.models.weights import fill
from tests.training.distributed.test_parallel import four_ranks
from training.distributed.sequence_parallel import forward_shard, shard_of, ulysses

# Three heads, 27 video and 7 text tokens: nothing divides by two or four.
SIZE = {"num_layers": 2, "num_attention_heads": 3, "attention_head_dim": 16, "joint_attention_dim": 24}


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 16, 3, 6, 6), (2, 7, 24), (2, 40)
    return [torch.randn(s, generator=generator) for s in shapes] + [torch.tensor([998.8, 300.0])]


def model(position: str) -> ContentVTransformer:
    return fill(ContentVTransformer(**SIZE, pooled_projection_dim=40, position=position))


def gradients(network: ContentVTransformer) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def one_process(position: str) -> dict[str, torch.Tensor]:
    network, (latents, text, pooled, timestep) = model(position), inputs()
    network(latents, text, pooled, timestep).square().sum().backward()
    return gradients(network)


def in_rank(rank: int) -> dict[Any, dict[str, torch.Tensor]]:
    """The gradients on one of four ranks, in the process that runs all cases of four ranks."""
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    cases = {"four": dist.group.WORLD, "two": halves[rank // 2]}
    found = {}
    for ranks, group in cases.items():
        for position in ("absolute", "rotary"):
            for mode in ("none", "full"):
                network, (latents, text, pooled, timestep) = model(position), inputs()
                network.recompute = Recompute(mode)
                patches, grid = patchify(latents, 2), token_grid(latents, 2)
                set_attention(network, ulysses(sdpa, group, patches.shape[1], text.shape[1]))
                out, shard = forward_shard(network, patches, text, pooled, timestep, grid, group)
                assert out.shape[1] == shard.real
                out.square().sum().backward()
                for parameter in network.parameters():
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    dist.all_reduce(parameter.grad, group=group)
                found[ranks, position, mode] = gradients(network)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return [each["sequence"] for each in four_ranks(tmp_path_factory)[1]]


@pytest.mark.parametrize("mode", ["none", "full"])
@pytest.mark.parametrize("position", ["absolute", "rotary"])
@pytest.mark.parametrize("ranks", ["two", "four"])
def test_gradients_are_those_of_one_process(found, ranks: str, position: str, mode: str) -> None:
    expected = one_process(position)
    for each in found:
        for name, gradient in each[ranks, position, mode].items():
            assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


def test_every_token_is_on_one_rank_and_all_ranks_have_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda group: 4)
    for tokens in (1, 7, 8, 27):
        shards = []
        for rank in range(4):
            monkeypatch.setattr(dist, "get_rank", lambda group, rank=rank: rank)
            shards.append(shard_of(tokens, None))
        assert torch.cat([shard.indices[: shard.real] for shard in shards]).tolist() == list(range(tokens))
        assert len({len(shard.indices) for shard in shards}) == 1
