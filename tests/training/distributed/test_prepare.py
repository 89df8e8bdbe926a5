"""What the machine says reaches the model that is trained, by one way; groups of ranks are PyTorch's "fake" ones."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.transformer import peak_bytes
from models.checkpoint import CONFIGS, read_config, save_transformer, write_config
from models.flops import parameters
from models.transformer import ContentVTransformer
from tests.models.weights import SMALL, fill, inputs
from training.distributed import weights
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.distributed.parallel import Parallel, local
from training.distributed.prepare import on_meta, prepare

CPU = torch.device("cpu")
LAYERS = SMALL["num_layers"]
Ranks = Callable[[Layout], Parallel]


@pytest.fixture
def rank_of() -> Iterator[Ranks]:
    """Rank 0 of a layout, whose other ranks send nothing."""

    def start(layout: Layout) -> Parallel:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=layout.world)
        mesh = init_device_mesh("cpu", (layout.shard,), mesh_dim_names=("shard",))
        group = dist.new_group(list(range(layout.sequence))) if layout.sequence > 1 else None
        return Parallel(layout, 0, CPU, mesh, group)

    yield start
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("start")
    save_transformer(fill(ContentVTransformer(**SMALL)), folder / "transformer")
    return str(folder)


def alone() -> Parallel:
    return Parallel(Layout(), 0, CPU)


def loss(parallel: Parallel, model: ContentVTransformer) -> Tensor:
    batch = inputs()
    out = parallel.predict(
        model, batch["hidden_states"], batch["encoder_hidden_states"], batch["pooled_projections"], batch["timestep"]
    )
    return out.float().square().sum()


def collectives(step: Callable[[], Any]) -> Counter[str]:
    """The exchanges that a step makes, by the name under which PyTorch dispatches them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    return Counter(event.name for event in profiler.events() if event.name.startswith("c10d::"))


@pytest.mark.effect("MachineConfig.recompute")
@pytest.mark.parametrize(
    ("mode", "every", "expected"),
    [("none", 1, 0), ("attention", 1, LAYERS), ("full", 1, LAYERS), ("full", 2, 2), ("attention", 3, 1)],
)
def test_blocks_of_the_prepared_model_are_checkpointed_as_the_machine_says(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, mode: Any, every: int, expected: int
) -> None:
    calls = []
    real = torch.utils.checkpoint.checkpoint

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0])
        return real(*arguments, **options)

    monkeypatch.setattr("models.recompute.checkpoint", counted)
    parallel = alone()
    model = prepare(checkpoint, MachineConfig(recompute=mode, recompute_every=every), parallel, 0)
    loss(parallel, model).backward()
    assert len(calls) == expected


@pytest.mark.effect("MachineConfig.recompute_every")
def test_of_so_many_blocks_one_is_computed_again(checkpoint: str) -> None:
    blocks: list[int] = []
    for every in (1, 2):
        model = prepare(checkpoint, MachineConfig(recompute="full", recompute_every=every), alone(), 0)
        runs: Counter[int] = Counter()
        for index, block in enumerate(model.transformer_blocks):
            block.register_forward_pre_hook(lambda *_, index=index, runs=runs: runs.update([index]))
        loss(alone(), model).backward()
        blocks.append(sum(runs.values()) - LAYERS)
    assert blocks == [3, 2]


@pytest.mark.parametrize(("mode", "again"), [("none", 0), ("attention", 0), ("full", 2)])
def test_exchanges_of_sequence_parallelism_are_not_repeated_where_attention_is_kept(
    checkpoint: str, rank_of: Ranks, mode: Any, again: int
) -> None:
    """A block exchanges twice forward, and each gradient once back; mode "full" keeps nothing of a block."""
    parallel = rank_of(Layout(2, 2, 2))
    model = prepare(checkpoint, MachineConfig(shard=2, sequence=2, recompute=mode), parallel, 0)
    losses: list[Tensor] = []
    forward = collectives(lambda: losses.append(loss(parallel, model)))
    backward = collectives(lambda: losses[0].backward())
    assert forward["c10d::alltoall_base_"] == 2 * LAYERS
    assert backward["c10d::alltoall_base_"] == (2 + again) * LAYERS


@pytest.mark.effect("MachineConfig.sequence")
def test_ranks_that_share_a_sample_exchange_its_tokens(checkpoint: str, rank_of: Ranks) -> None:
    parallel = rank_of(Layout(2, 2, 2))
    together = prepare(checkpoint, MachineConfig(shard=2, sequence=2), parallel, 0)
    assert collectives(lambda: loss(parallel, together))["c10d::alltoall_base_"]
    own = replace(parallel, layout=Layout(2, 2, 1), sequence_group=None)
    apart = prepare(checkpoint, MachineConfig(shard=2), own, 0)
    assert not collectives(lambda: loss(own, apart))["c10d::alltoall_base_"]


@pytest.mark.effect("MachineConfig.shard")
def test_a_rank_holds_its_share_of_the_model(checkpoint: str, rank_of: Ranks) -> None:
    whole = sum(parameter.numel() for parameter in prepare(checkpoint, MachineConfig(), alone(), 0).parameters())
    parallel = rank_of(Layout(4, 4, 1))
    model = prepare(checkpoint, MachineConfig(shard=4), parallel, 0)
    held = sum(local(parameter).numel() for parameter in model.parameters())
    assert whole / 4 <= held < whole / 3


@pytest.mark.effect("MachineConfig.dtype")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_compute_in_the_machines_dtype_and_weights_stay_float32(
    checkpoint: str, rank_of: Ranks, dtype: Any
) -> None:
    parallel = rank_of(Layout(2, 2, 1))
    model = prepare(checkpoint, MachineConfig(shard=2, dtype=dtype), parallel, 0)
    seen: list[torch.dtype] = []
    model.transformer_blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    loss(parallel, model)
    assert seen == [getattr(torch, dtype)]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_preflight_prepares_the_same_model_without_weights(checkpoint: str) -> None:
    machine = MachineConfig(recompute="full", recompute_every=2, shard=8, sequence=4, device="npu")
    shapes = prepare(checkpoint, machine, on_meta(Layout(16, 8, 4)), 0)
    assert all(parameter.is_meta for parameter in shapes.parameters())
    trained = prepare(checkpoint, MachineConfig(recompute="full", recompute_every=2), alone(), 0)
    assert shapes.recompute == trained.recompute
    assert shapes.config == trained.config


def test_what_recomputes_nothing_cannot_do_so_every_second_block() -> None:
    with pytest.raises(ValueError, match="recomputes no block"):
        MachineConfig(recompute_every=2)


@pytest.fixture
def new_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A size by its name, wide enough that its weights outweigh all else."""
    monkeypatch.setattr(weights, "CONFIGS", tmp_path)
    monkeypatch.setattr("models.checkpoint.CONFIGS", tmp_path)
    for file in CONFIGS.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = replace(read_config("tiny"), num_layers=6, num_attention_heads=4, joint_attention_dim=64)
    write_config(replace(config, pooled_projection_dim=64), tmp_path / "wide.json")
    return "wide"


def test_no_rank_holds_new_weights_whole(new_size: str, rank_of: Ranks) -> None:
    """A rank of eight has its eighth, and one tensor at a time of the others'."""
    whole = 4 * parameters(read_config(new_size))
    parallel = rank_of(Layout(8, 8, 1))
    prepare(new_size, MachineConfig(shard=8), parallel, 0)  # what PyTorch allocates once
    assert peak_bytes(lambda: prepare(new_size, MachineConfig(shard=8), parallel, 0)) < 0.35 * whole


def test_new_weights_depend_on_the_seed_alone(new_size: str, rank_of: Ranks) -> None:
    first, again, other = (
        dict(prepare(new_size, MachineConfig(), alone(), seed).named_parameters()) for seed in (1, 1, 2)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    drawn = "transformer_blocks.0.attn.to_q.weight"
    assert not torch.equal(first[drawn], other[drawn])
    sharded = dict(prepare(new_size, MachineConfig(shard=4), rank_of(Layout(4, 4, 1)), 1).named_parameters())[drawn]
    assert isinstance(sharded, DTensor)
    assert torch.equal(local(sharded), first[drawn].chunk(4)[0])


def test_new_weights_leave_the_generator_of_others_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    prepare("tiny", MachineConfig(), alone(), 0)
    assert torch.equal(torch.rand(3), expected)
