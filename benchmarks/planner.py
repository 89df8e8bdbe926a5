"""The planner against what a training step takes: predicted and measured memory of a few layers of full width.

    python -m benchmarks.planner [--device cpu] [--heads 38] [--layers 2] [--frames 29] [--text 333]

A step is two micro-batches, so that gradients are there when the second has its peak, then clipping, AdamW and averaged
weights, all by the code that trains. Beyond one rank, the process group is PyTorch's "fake": collectives move nothing,
so one process has the memory of one rank of many, and its numbers mean nothing.

On the CPU memory is what PyTorch's allocator reports to the profiler; with ``--device cuda`` or ``npu`` it is what the
caching allocator had allocated at most. That last has not been run: there was no accelerator.
"""

import argparse
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.transformer import peak_bytes
from models.checkpoint import read_config
from models.recompute import Mode
from models.transformer import ContentVTransformer, TransformerConfig, initialise
from training.checkpoint.ema import Ema
from training.data.buckets import Shape
from training.distributed.layout import Layout
from training.distributed.machine import Dtype, MachineConfig
from training.distributed.parallel import Parallel, local
from training.distributed.prepare import apply_machine
from training.memory.step import MODES, Setup, Tokens, step_bytes
from training.objectives.flow_matching import noised, squared_errors

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A step to be predicted and measured."""

    setup: Setup
    shape: Shape
    samples: int
    text_tokens: int

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.samples, self.shape.tokens, self.text_tokens)


def measured(case: Case) -> int:
    """The most bytes that one rank has at once in a step."""
    setup = case.setup
    parallel = _rank_zero(setup)
    try:
        return _state_and_peak(case, parallel)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def predicted(case: Case) -> int:
    """The same by the planner, without what it leaves free."""
    return step_bytes(case.setup, case.tokens)


def _rank_zero(setup: Setup) -> Parallel:
    layout, device = setup.layout, torch.device(setup.device)
    if not setup.fully_sharded:
        return Parallel(layout, 0, device)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=layout.world)
    sizes = {"replicate": layout.replicas, "shard": layout.shard}
    sizes = {name: size for name, size in sizes.items() if name == "shard" or size > 1}
    mesh = init_device_mesh(setup.device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    group = dist.new_group(list(range(layout.sequence))) if layout.sequence > 1 else None
    return Parallel(layout, 0, device, mesh, group)


def _state_and_peak(case: Case, parallel: Parallel) -> int:
    config = case.setup.config
    torch.manual_seed(0)
    model = ContentVTransformer(**vars(config))
    initialise(model)
    setup = case.setup
    machine = MachineConfig(dtype=setup.dtype, recompute=setup.recompute, recompute_every=setup.recompute_every)
    apply_machine(model, machine, parallel)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=case.setup.device != "npu")
    ema = Ema(model, 0.999)

    def step() -> None:
        for last in (False, True):
            latents, noise = (torch.randn(case.samples, config.in_channels, *case.shape.latent) for _ in range(2))
            latents, noise = latents.to(parallel.device), noise.to(parallel.device)
            sigma = torch.rand(case.samples, device=parallel.device)
            text = torch.randn(case.samples, case.text_tokens, config.joint_attention_dim).to(parallel.device)
            pooled = torch.randn(case.samples, config.pooled_projection_dim).to(parallel.device)
            parallel.micro_step(model, last)
            prediction = parallel.predict(model, noised(latents, noise, sigma), text, pooled, 1000 * sigma)
            (squared_errors(prediction, parallel.own(noise - latents)).sum() / 1e6).backward()
        torch._foreach_norm([local(parameter.grad) for parameter in parameters if parameter.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    step()  # makes the moments
    held = [*parameters, *ema.state.values()]
    held += [value for values in optimizer.state.values() for value in values.values()]
    return sum(local(tensor).nbytes for tensor in held) + peak_bytes(step, parallel.device.type)


def cases(config: TransformerConfig, frames: int, text: int, device: str) -> list[Case]:
    """Recomputation modes, batches and shapes on one rank; and one rank of several, sharded and sharing samples."""
    small, image = Shape(frames, 96, 160), Shape(1, 288, 288)
    layouts: list[tuple[Layout, Dtype, Shape, int]] = [
        (Layout(), "float32", small, 1),
        (Layout(), "float32", image, 2),
        (Layout(), "bfloat16", small, 1),
        (Layout(8, 8, 1), "bfloat16", small, 2),
        (Layout(8, 8, 8), "bfloat16", Shape(frames, 288, 288), 2),
        (Layout(16, 8, 4), "bfloat16", Shape(frames, 288, 288), 1),
    ]
    return [
        Case(Setup(config, layout, dtype, mode, device), shape, samples, text)  # type: ignore[arg-type]
        for layout, dtype, shape, samples in layouts
        for mode in MODES
    ]


def report(case: Case) -> float:
    """Print a line of the table; predicted memory over measured."""
    ours, theirs = predicted(case), measured(case)
    layout = case.setup.layout
    mode: Mode = case.setup.recompute
    print(
        f"{layout.world:5} {layout.shard:5} {layout.sequence:8} {case.setup.dtype:>9} {mode:>9} {case.shape!s:>12} "
        f"{case.samples:7} {ours / MIB:10.1f} {theirs / MIB:9.1f} {ours / theirs:6.3f}",
        flush=True,
    )
    return ours / theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "npu"])
    parser.add_argument("--heads", type=int, default=38)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--frames", type=int, default=29)
    parser.add_argument("--text", type=int, default=333)
    options = parser.parse_args()
    config = replace(read_config("8b"), num_layers=options.layers, num_attention_heads=options.heads)
    print(f"{options.layers} layers, {options.heads} x 64, {options.text} text tokens, {options.device}; MiB")
    print("world shard sequence     dtype recompute        shape samples  predicted  measured  ratio")
    ratios = [report(case) for case in cases(config, options.frames, options.text, options.device)]
    print(f"ratios {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
