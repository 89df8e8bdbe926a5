"""Spreading a run over ranks changes nothing: loss, gradients, weights and averages are those of one process.

One process each for four ranks runs all cases of this file and of those that import ``four_ranks``.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from models.recompute import Mode
from models.transformer import ContentVTransformer
from tests.models.weights import fill
from training.checkpoint.ema import Ema
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.distributed.parallel import Parallel, SharedFlag, local, parallelize, start, stop
from training.distributed.prepare import apply_machine
from training.objectives.flow_matching import noised, squared_errors, timestep_of

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")

RANKS = 4
# Three heads do not divide by two or four; nor do the tokens of the buckets: 27, 12, 3, and 1, which one rank has.
SIZE = {"num_layers": 2, "num_attention_heads": 3, "attention_head_dim": 16}
SIZE |= {"joint_attention_dim": 24, "pooled_projection_dim": 40}
BUCKETS = [(3, 6, 6), (2, 4, 6), (1, 6, 2), (1, 2, 2)]
WORDS = 7
STEPS = 3
LAYOUTS = {
    "sp4": Layout(4, 4, 4),
    "sp2": Layout(4, 4, 2),
    "hsdp": Layout(4, 2, 1),
    "sp2 hsdp": Layout(4, 2, 2),
    "replicas": Layout(4, 1, 1),
    "sp2 replicas": Layout(4, 1, 2),
    "fsdp": Layout(4, 4, 1),
}
CASES = [(name, mode) for name in list(LAYOUTS)[:4] for mode in ("none", "attention", "full")]
CASES += [(name, "none") for name in ("replicas", "sp2 replicas")]


def small_model() -> ContentVTransformer:
    return fill(ContentVTransformer(**SIZE))


def adam(model: ContentVTransformer) -> torch.optim.AdamW:
    # A larger eps than usual: with 1e-8, elements whose gradient is all rounding would step as far as the others.
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, eps=1e-3, fused=True)


def sample(step: int, index: int) -> dict[str, torch.Tensor]:
    """Two samples of each bucket a step."""
    generator = torch.Generator().manual_seed(100 * step + index)
    shape = (16, *BUCKETS[index // 2])
    return {
        "data": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "sigma": torch.rand((), generator=generator),
        "text": torch.randn((WORDS, 24), generator=generator),
        "pooled": torch.randn((40,), generator=generator),
    }


def batch(step: int, indices: range) -> dict[str, torch.Tensor]:
    samples = [sample(step, index) for index in indices]
    return {name: torch.stack([one[name] for one in samples]) for name in samples[0]}


VALUES = 2 * sum(16 * t * h * w for t, h, w in BUCKETS)


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As ``full_tensor`` of each, with one exchange for all."""
    sharded = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    if not sharded:
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}
    some = next(iter(sharded.values()))
    group = some.device_mesh.get_group("shard")
    ranks = dist.get_world_size(group)
    rows = {name: -(-len(tensor) // ranks) for name, tensor in sharded.items()}  # of a rank; the last ones have fewer
    own = torch.cat([local(tensor.detach()).flatten() for tensor in sharded.values()])
    each = sum(rows[name] * tensor[:1].numel() for name, tensor in sharded.items())
    parts = [torch.empty(each) for _ in range(ranks)]
    dist.all_gather(parts, torch.nn.functional.pad(own, (0, each - len(own))), group)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in sharded}
    for rank, part in enumerate(parts):
        for name, tensor in sharded.items():
            count = min(rows[name], max(0, len(tensor) - rank * rows[name])) * tensor[:1].numel()
            found[name].append(part[:count])
            part = part[count:]
    gathered = {name: torch.cat(found[name]).view(tensor.shape) for name, tensor in sharded.items()}
    assert torch.equal(gathered[next(iter(sharded))], some.full_tensor())
    return {name: gathered.get(name, tensor).detach().clone() for name, tensor in tensors.items()}


def gradients(model: ContentVTransformer) -> dict[str, torch.Tensor]:
    return whole({name: parameter.grad for name, parameter in model.named_parameters()})


@cache
def one_process() -> dict[str, Any]:
    """What training does, written plainly: no accumulation, no groups, the loss of all samples at once."""
    model = small_model()
    ema, optimizer = {name: p.detach().clone() for name, p in model.named_parameters()}, adam(model)
    found: dict[str, Any] = {"loss": [], "norm": [], "gradients": []}
    for step in range(STEPS):
        loss = torch.zeros(())
        for bucket in range(len(BUCKETS)):
            b = batch(step, range(2 * bucket, 2 * bucket + 2))
            noisy = noised(b["data"], b["noise"], b["sigma"])
            out = model(noisy, b["text"], b["pooled"], timestep_of(b["sigma"]))
            loss = loss + squared_errors(out, b["noise"] - b["data"]).sum() / VALUES
        loss.backward()
        found["loss"].append(loss.item())
        found["gradients"].append(gradients(model))
        found["norm"].append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            ema[name].mul_(0.9).add_(parameter.detach(), alpha=0.1)
    found["model"], found["ema"] = whole(dict(model.named_parameters())), ema
    model.load_state_dict(ema)
    with torch.no_grad():
        found["sample"] = model(*sampling_inputs())
    return found


def sampling_inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = (1, 16, 2, 4, 4), (1, WORDS, 24), (1, 40)
    return [torch.randn(shape, generator=generator) for shape in shapes] + [torch.tensor([998.8])]


def train_step(parallel: Parallel, model: ContentVTransformer, step: int) -> torch.Tensor:
    """The loss of a step over all ranks; leaves the summed gradients."""
    each = 2 * len(BUCKETS) // parallel.layout.data_ranks
    size = min(2, each // 2)  # so there are two micro-steps or more
    first, loss = parallel.data_rank * each, torch.zeros(())
    for at in range(first, first + each, size):
        parallel.micro_step(model, last=at + size == first + each)
        b = batch(step, range(at, at + size))
        noisy = noised(b["data"], b["noise"], b["sigma"])
        out = parallel.predict(model, noisy, b["text"], b["pooled"], timestep_of(b["sigma"]))
        own = squared_errors(out, parallel.own(b["noise"] - b["data"])).sum() / VALUES
        own.backward()
        loss += own.detach()
    return parallel.total(loss)


def trained(parallel: Parallel, mode: Mode, between: Callable[..., None] | None = None) -> dict[str, Any]:
    model = small_model()
    apply_machine(model, MachineConfig(recompute=mode), parallel)
    ema, optimizer = Ema(model, 0.9), adam(model)
    found: dict[str, Any] = {"loss": [], "norm": [], "gradients": []}
    for step in range(STEPS):
        if between:
            between(model, ema)
        found["loss"].append(train_step(parallel, model, step).item())
        found["gradients"].append(gradients(model))
        found["norm"].append(parallel.clip_grad_norm(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    found["model"], found["ema"] = whole(dict(model.named_parameters())), whole(ema.state)
    with torch.no_grad(), parallel.whole(model), ema.applied(model):
        found["sample"] = model(*sampling_inputs())
    return found


def in_half_precision(parallel: Parallel) -> dict[str, Any]:
    model = small_model()
    parallelize(model, parallel, torch.bfloat16)
    seen = []
    model.time_text_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    found = {"loss": train_step(parallel, model, 0).item(), "gradients": gradients(model)}
    with torch.no_grad(), parallel.whole(model):
        out = model(*sampling_inputs())
    return found | {"out": out.dtype, "timestep": seen[-1], "trained at": seen[0]}


def sampled_in_between(parallel: Parallel) -> Callable[..., None]:
    def between(model: ContentVTransformer, ema: Ema) -> None:
        with torch.no_grad(), parallel.whole(model), ema.applied(model):
            model(*sampling_inputs())

    return between


def interrupted(parallel: Parallel) -> dict[str, torch.Tensor]:
    """Gradients of a micro-batch whose blocks are computed again after the model was asked for a whole video."""
    model = small_model()
    apply_machine(model, MachineConfig(recompute="full"), parallel)
    b = batch(0, range(0, 2))
    noisy = noised(b["data"], b["noise"], b["sigma"])
    out = parallel.predict(model, noisy, b["text"], b["pooled"], timestep_of(b["sigma"]))
    loss = squared_errors(out, parallel.own(b["noise"] - b["data"])).sum()
    with torch.no_grad(), parallel.whole(model):
        model(*sampling_inputs())
    loss.backward()
    return gradients(model)


def shared(parallel: Parallel) -> list[torch.Tensor]:
    number = float(parallel.data_rank)
    tensors = [torch.full((2, 3), number), torch.full((1, 2, 1, 4), number).bfloat16(), torch.zeros(0, 5)]
    return parallel.share([*tensors, torch.tensor(parallel.data_rank)] if parallel.leader else None)


def flags(parallel: Parallel) -> list[bool]:
    flag = SharedFlag(parallel)
    return [flag.exchange(parallel.rank == 2 and turn == 1) for turn in range(4)]


def in_rank(rank: int, folder: str) -> None:
    from tests.training.checkpoint import test_checkpoints
    from tests.training.distributed import test_sequence_parallel
    from tests.training.memory import test_micro_batch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # As under Ray Train: the process group is there already, and is not ours to end.
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    os.environ["WORLD_SIZE"], found = str(RANKS), {}
    parallels = {name: start(layout, "cpu") for name, layout in LAYOUTS.items()}
    for name, mode in CASES:
        found[name, mode] = trained(parallels[name], mode)
        if rank:  # one has the gathered tensors; all have the norm
            found[name, mode] = {"norm": found[name, mode]["norm"]}
    both = parallels["sp2 hsdp"]
    found["sampled"] = trained(both, "full", sampled_in_between(both))
    found["half"] = in_half_precision(both)
    found["interrupted"] = interrupted(parallels["sp4"])
    found["shared"], found["flags"] = shared(both), flags(both)
    found["sequence"] = test_sequence_parallel.in_rank(rank)
    found["at once"] = test_micro_batch.in_rank(parallels["fsdp"])
    found["checkpoints"] = test_checkpoints.in_rank(parallels, Path(folder))
    for parallel in parallels.values():
        stop(parallel)
    found["still there"] = dist.is_initialized()
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


_found: list[Any] = []


def four_ranks(factory: pytest.TempPathFactory) -> tuple[Path, list[dict[Any, Any]]]:
    """The folder in which four ranks ran all cases, and what each found; once a session."""
    from tests.training.checkpoint import test_checkpoints

    if not _found:
        folder = factory.mktemp("ranks")
        test_checkpoints.before_ranks(folder)
        mp.spawn(in_rank, (str(folder),), nprocs=RANKS)
        _found.append((folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]))
    return _found[0]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[Any, Any]]:
    return four_ranks(tmp_path_factory)[1]


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], relative: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # A part of a tensor that is all rounding is measured by a thousandth of the largest.
        floor = 1e-3 * max(other.norm() for other in expected.values())
        assert (found[name] - tensor).norm() <= relative * max(tensor.norm(), floor), name


def assert_same_training(found: dict[str, Any]) -> None:
    expected = one_process()
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["norm"] == pytest.approx(expected["norm"], rel=1e-5)
    assert min(expected["norm"]) > 1  # else nothing was clipped
    for step in range(STEPS):
        assert_near(found["gradients"][step], expected["gradients"][step], 1e-5)
    for part in ("model", "ema"):
        assert_near(found[part], expected[part], 1e-5)
    torch.testing.assert_close(found["sample"], expected["sample"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layout", "mode"), CASES)
def test_three_steps_on_four_ranks_are_those_of_one_process(ranks, layout: str, mode: str) -> None:
    assert_same_training(ranks[0][layout, mode])
    assert len({tuple(found[layout, mode]["norm"]) for found in ranks}) == 1  # the very same on all


def test_three_steps_on_one_rank_are_those_of_one_process() -> None:
    assert_same_training(trained(Parallel(Layout(), 0, torch.device("cpu")), "none"))


def test_sampling_between_steps_leaves_training_as_it_is(ranks) -> None:
    for found in ranks:
        assert_same_training(found["sampled"])


def test_sampling_between_a_forward_pass_and_its_backward_pass_leaves_it_as_it_is(ranks) -> None:
    model, b = small_model(), batch(0, range(0, 2))
    noisy = noised(b["data"], b["noise"], b["sigma"])
    out = model(noisy, b["text"], b["pooled"], timestep_of(b["sigma"]))
    squared_errors(out, b["noise"] - b["data"]).sum().backward()
    assert_near(ranks[0]["interrupted"], gradients(model), 1e-5)


def test_half_precision_is_of_computing_alone(ranks) -> None:
    expected, found = one_process(), ranks[0]["half"]
    assert found["out"] == torch.bfloat16
    assert found["loss"] == pytest.approx(expected["loss"][0], rel=0.02)
    for name, gradient in found["gradients"].items():
        assert gradient.dtype == torch.float32, name
    assert_near(found["gradients"], expected["gradients"][0], 0.1)


def test_timesteps_are_not_rounded_in_half_precision(ranks) -> None:
    assert torch.equal(ranks[0]["half"]["timestep"], torch.tensor([998.8]))
    trained_at = timestep_of(batch(0, range(0, 2))["sigma"])
    assert torch.equal(ranks[0]["half"]["trained at"], trained_at)
    assert not torch.equal(trained_at.bfloat16().float(), trained_at)


def test_one_rank_in_half_precision_keeps_weights_in_float32() -> None:
    parallel = start(Layout(), "cpu")
    try:
        model = small_model()
        parallelize(model, parallel, torch.bfloat16)
        optimizer, ema = adam(model), Ema(model, 0.9)
        before = whole(dict(model.named_parameters()))
        assert train_step(parallel, model, 0).item() == pytest.approx(one_process()["loss"][0], rel=0.02)
        assert_near(gradients(model), one_process()["gradients"][0], 0.1)
        parallel.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        ema.update()
        for name, parameter in whole(dict(model.named_parameters())).items():
            assert parameter.dtype == ema.state[name].dtype == torch.float32
            assert not torch.equal(parameter, before[name]), name
    finally:
        stop(parallel)
    assert not dist.is_initialized()


def test_the_leader_shares_its_batch_with_its_group_alone(ranks) -> None:
    for rank, found in enumerate(ranks):
        floats, halves, nothing, number = found["shared"]
        assert torch.equal(floats, torch.full((2, 3), float(rank // 2)))
        assert torch.equal(halves, torch.full((1, 2, 1, 4), rank // 2).bfloat16())
        assert nothing.shape == (0, 5)
        assert number.item() == rank // 2 and number.dtype == torch.int64


def test_a_flag_of_one_rank_is_seen_by_all_in_the_next_turn(ranks) -> None:
    assert [found["flags"] for found in ranks] == [[False, False, True, False]] * RANKS
    alone = SharedFlag(Parallel(Layout(), 0, torch.device("cpu")))
    assert [alone.exchange(flag) for flag in (False, True, False)] == [False, False, True]


def test_a_process_group_of_others_is_not_ended(ranks) -> None:
    assert all(found["still there"] for found in ranks)


def test_another_number_of_ranks_than_the_layout_says_is_refused() -> None:
    with pytest.raises(ValueError, match="4 ranks, and 1 were started"):
        start(Layout(4), "cpu")


def test_a_device_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(RuntimeError, match="cuda"):
        start(Layout(), "cuda")


def test_timesteps_in_half_precision_are_refused() -> None:
    noisy, text, pooled, timestep = sampling_inputs()
    with pytest.raises(ValueError, match=r"rounds 998\.8"):
        Parallel(Layout(), 0, torch.device("cpu")).predict(small_model(), noisy, text, pooled, timestep.bfloat16())


def test_tensors_that_cannot_be_told_are_refused() -> None:
    from training.distributed.parallel import _describe, _described

    shapes = [(2, 3), (), (0, 4)]
    assert [shape for _, shape in _described(_describe([torch.zeros(s) for s in shapes]))] == [list(s) for s in shapes]
    with pytest.raises(ValueError, match="complex64"):
        _describe([torch.zeros(1, dtype=torch.complex64)])
    with pytest.raises(ValueError, match="40 tensors"):
        _describe([torch.zeros(1)] * 40)
