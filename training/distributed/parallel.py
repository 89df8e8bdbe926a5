"""How a run is spread over ranks, applied from outside the model (report, section 7.4): FSDP2 or HSDP, and Ulysses.

The loss of a rank is its own tokens' errors over the count of the whole step, so gradients are *summed* over all ranks,
whatever group they are in. Weights, gradients' sums and the optimiser are float32; only computing may be bfloat16.
"""

import importlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from models.attention import Attention, kernel
from models.transformer import (
    ContentVTransformer,
    attention_of,
    check_inputs,
    patchify,
    set_attention,
    token_grid,
)
from training.distributed.layout import Layout
from training.distributed.sequence_parallel import forward_shard, shard_of, ulysses

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
PATIENCE_S = 1800.0
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
HEADER = 64  # numbers that describe the tensors of a batch: how many, then dtype, axes and sizes of each

# Said of a block's text, which the last block passes on, and of samples: nothing writes into either.
warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")


@dataclass
class Parallel:
    """This rank's place, and what all ranks do together. ``start`` makes one.

    Attributes:
        mesh: (replicate, shard), or only (shard) where there is one replica; None where nothing is sharded.
        sequence_group: the ranks that share this rank's sample, on the device; None where there is one.
        cpu_group, header_group: all ranks, and those of the sequence, gloo, for what is told without the device.
        checkpoint_group: all ranks, gloo, for checkpoints alone: they talk from a thread of theirs.
        owner: whether ``start`` made the process group, and ``stop`` ends it.
    """

    layout: Layout
    rank: int
    device: torch.device
    mesh: DeviceMesh | None = None
    sequence_group: dist.ProcessGroup | None = None
    cpu_group: dist.ProcessGroup | None = None
    header_group: dist.ProcessGroup | None = None
    checkpoint_group: dist.ProcessGroup | None = None
    owner: bool = False
    _exchange: tuple[tuple[int, int], Attention] | None = field(default=None, repr=False)  # for so many tokens
    _reduces: bool | None = field(default=None, repr=False)

    @property
    def data_rank(self) -> int:
        return self.layout.data_rank(self.rank)

    @property
    def sequence_rank(self) -> int:
        return self.rank % self.layout.sequence

    @property
    def leader(self) -> bool:
        """Whether this is the rank of its sequence group that brings the batch."""
        return self.sequence_rank == 0

    @property
    def attention(self) -> str:
        """The kernel of this device."""
        return "npu" if self.device.type == "npu" else "sdpa"

    def predict(
        self, model: ContentVTransformer, noisy: Tensor, text: Tensor, pooled: Tensor, timestep: Tensor
    ) -> Tensor:
        """The model's answer for this rank's tokens: [B, n, p p C], to be compared with ``own`` of what it should be.

        The ranks of a sequence group give the same, whole inputs, as ``ContentVTransformer.forward`` takes them. The
        model casts them to what it computes in, the timestep after its sinusoids.

        ValueError: a shape does not fit, or the timestep is of half precision.
        """
        check_inputs(model.config, noisy, text, pooled, timestep)
        patch = model.config.patch_size
        patches, grid = patchify(noisy, patch), token_grid(noisy, patch)
        if self.sequence_group is None:
            return model.forward_tokens(patches, text, pooled, timestep, grid)
        self._attend(model, patches.shape[1], text.shape[1])
        return forward_shard(model, patches, text, pooled, timestep, grid, self.sequence_group)[0]

    def _attend(self, model: ContentVTransformer, video_tokens: int, text_tokens: int) -> None:
        """Have the model attend over shards of so many tokens, in this forward pass and in its backward pass."""
        assert self.sequence_group is not None
        counts = video_tokens, text_tokens
        if self._exchange is None or self._exchange[0] != counts:
            self._exchange = counts, ulysses(kernel(self.attention), self.sequence_group, *counts)
        if attention_of(model) is not self._exchange[1]:
            set_attention(model, self._exchange[1])

    def own(self, latents: Tensor, patch: int = 2) -> Tensor:
        """This rank's tokens of whole latents [B, C, T, h, w]: [B, n, p p C], in the order of ``predict``'s answer."""
        patches = patchify(latents, patch)
        if self.sequence_group is not None:
            shard = shard_of(patches.shape[1], self.sequence_group, patches.device)
            patches = patches[:, shard.indices[: shard.real]]
        return patches.unflatten(2, (-1, patch * patch)).transpose(2, 3).flatten(2)

    @contextmanager
    def whole(self, model: ContentVTransformer) -> Iterator[None]:
        """Meanwhile the model takes whole videos on every rank, as sampling does; after it, it attends as before.

        A sharded model wants all ranks to call it as often.
        """
        before = attention_of(model)
        set_attention(model, self.attention)
        try:
            yield
        finally:
            set_attention(model, before)  # a backward pass that is still to come may compute blocks again

    def micro_step(self, model: nn.Module, last: bool) -> None:
        """Say before a forward pass whether its gradients complete the step.

        All are summed within a copy of the model, which keeps them sharded; only the last sum goes between copies.
        All ranks take as many micro-steps, as each is a collective.
        """
        if isinstance(model, FSDPModule) and self._reduces is not last:
            model.set_requires_all_reduce(last)
            model.set_is_last_backward(last)
            self._reduces = last

    def share(self, tensors: Sequence[Tensor] | None) -> list[Tensor]:
        """The leader's tensors on the device of each rank of its sequence group; the others give None.

        ValueError on the leader, and then the group is lost: of a dtype or a number of axes that cannot be told.
        """
        if self.sequence_group is None or self.header_group is None:
            return [tensor.to(self.device, non_blocking=True) for tensor in tensors or ()]
        first = self.rank - self.sequence_rank
        header = torch.zeros(HEADER, dtype=torch.int64)
        if self.leader:
            header = _describe(tensors or ())
        dist.broadcast(header, first, group=self.header_group)
        shared = []
        for index, (dtype, shape) in enumerate(_described(header)):
            if self.leader and tensors is not None:
                tensor = tensors[index].to(self.device, non_blocking=True).contiguous()
            else:
                tensor = torch.empty(shape, dtype=dtype, device=self.device)
            if tensor.numel():
                dist.broadcast(tensor, first, group=self.sequence_group)
            shared.append(tensor)
        return shared

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place, say of the loss."""
        if self.layout.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def clip_grad_norm(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Scale gradients so that the norm of them all, over all shards, is at most ``max_norm``; the norm before.

        The answer is a scalar on the device, the same on all ranks; nothing waits for it.
        """
        grads = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        if not grads:
            raise ValueError("there are no gradients to clip")
        square = torch.stack(torch._foreach_norm(grads)).square().sum()
        if self.mesh is not None:
            dist.all_reduce(square, group=self.mesh.get_group("shard"))
        norm = square.sqrt()
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class SharedFlag:
    """Whether any rank says so, one step late and without waiting for the device: what a clean stop wants."""

    def __init__(self, parallel: Parallel) -> None:
        self._group = parallel.cpu_group
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None

    def exchange(self, flag: bool) -> bool:
        """Whether any rank had its flag set in the previous call. All ranks call it as often."""
        if self._work is not None:
            self._work.wait()
        answer = bool(self._flag.item())
        self._flag = torch.tensor([flag], dtype=torch.int32)
        if self._group is not None:
            self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer


def start(layout: Layout, device: str, patience_s: float = PATIENCE_S) -> Parallel:
    """Join the other ranks, as the launcher's environment names them (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR/PORT).

    Args:
        device: "cpu", "cuda" or "npu"; it chooses gloo, nccl or hccl. A process group that is there already, as in a
            worker of Ray Train, is used as it is. One rank alone has none.
        patience_s: how long a rank waits for the others in one exchange.

    Raises:
        ValueError: another number of ranks was started than the layout says.
        RuntimeError: this machine has no such device, or fewer of them than ranks.
    """
    there = dist.is_initialized()
    world = dist.get_world_size() if there else int(os.environ.get("WORLD_SIZE", "1"))
    if world != layout.world:
        raise ValueError(f"the layout is of {layout.world} ranks, and {world} were started")
    where = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    patience = timedelta(seconds=patience_s)
    if world > 1 and not there:
        bound = where if device == "cuda" else None
        dist.init_process_group(BACKENDS[device], timeout=patience, device_id=bound)
    rank = dist.get_rank() if dist.is_initialized() else 0
    parallel = Parallel(layout, rank, where, owner=not there and world > 1)
    if dist.is_initialized():
        _meet(parallel, patience)
    return parallel


def _device(kind: str, index: int) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "npu":
        kernel("npu")  # says what is missing
        importlib.import_module("torch_npu")
    accelerator = getattr(torch, kind)
    if not accelerator.is_available():
        raise RuntimeError(f'device "{kind}" was asked for, and PyTorch sees none here')
    if index >= accelerator.device_count():
        raise RuntimeError(f"rank {index} of this machine has no {kind}: there are {accelerator.device_count()}")
    device = torch.device(kind, index)
    accelerator.set_device(device)
    return device


def _meet(parallel: Parallel, patience: timedelta) -> None:
    """The groups; every rank makes all of them in the same order."""
    layout = parallel.layout
    parallel.cpu_group = dist.new_group(backend="gloo", timeout=patience)
    parallel.checkpoint_group = dist.new_group(backend="gloo", timeout=patience)
    if layout.world > 1:
        sizes = {"replicate": layout.replicas, "shard": layout.shard}
        if layout.replicas == 1:
            del sizes["replicate"]
        parallel.mesh = init_device_mesh(parallel.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    if layout.sequence > 1:
        parallel.sequence_group, _ = dist.new_subgroups(layout.sequence, timeout=patience)
        parallel.header_group, _ = dist.new_subgroups(layout.sequence, timeout=patience, backend="gloo")


def stop(parallel: Parallel) -> None:
    """Leave the others, and end the process group if ``start`` or ``parallelize`` made it."""
    parallel.mesh = parallel.sequence_group = parallel.header_group = None
    parallel.cpu_group = parallel.checkpoint_group = None
    if parallel.owner and dist.is_initialized():
        dist.destroy_process_group()
    parallel.owner = False


def parallelize(model: ContentVTransformer, parallel: Parallel, dtype: torch.dtype) -> None:
    """Spread the model over the ranks, and have it compute in ``dtype``; its weights become float32 on the device.

    Blocks go one by one to the device, so that it never holds more than its shards and one block. A model of the meta
    device gets memory there with nothing in it. One rank that computes in float32 has the plain model.
    """
    empty = next(model.parameters()).is_meta
    if parallel.layout.world == 1 and dtype == torch.float32:
        model.float()
        if empty:
            model.to_empty(device=parallel.device)
        else:
            model.to(parallel.device)
        return
    if parallel.mesh is None:
        _alone(parallel)
    half = None if dtype == torch.float32 else dtype
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in [*model.transformer_blocks, model]:
        module.float()  # before sharding: torch_npu cannot cast a DTensor
        # The root too gives its weights back after a forward pass: sampling leaves no others for the next step.
        sharded = fully_shard(module, mesh=parallel.mesh, mp_policy=policy, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo and hccl have no scaled sums
        sharded.set_reduce_scatter_unused_params(True, recurse=False)  # a rank without a gradient must not be missed
    register_fsdp_forward_method(model, "forward_tokens")
    if empty:
        model.to_empty(device=parallel.device)


def _alone(parallel: Parallel) -> None:
    """A process group of one: FSDP keeps weights in float32 beside those of half precision."""
    if not dist.is_initialized():
        dist.init_process_group(BACKENDS[parallel.device.type], store=dist.HashStore(), rank=0, world_size=1)
        parallel.owner = True
        _meet(parallel, timedelta(seconds=PATIENCE_S))
    parallel.mesh = init_device_mesh(parallel.device.type, (1,), mesh_dim_names=("shard",))


def _describe(tensors: Sequence[Tensor]) -> Tensor:
    numbers = [len(tensors)]
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise ValueError(f"tensors of {tensor.dtype} are not shared")
        numbers += [DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape]
    if len(numbers) > HEADER:
        raise ValueError(f"{len(tensors)} tensors are too many to share at once")
    return torch.tensor(numbers + [0] * (HEADER - len(numbers)))


def _described(header: Tensor) -> Iterator[tuple[torch.dtype, list[int]]]:
    count, *numbers = header.tolist()
    for _ in range(count):
        dtype, axes = numbers[:2]
        yield DTYPES[dtype], numbers[2 : 2 + axes]
        numbers = numbers[2 + axes :]
