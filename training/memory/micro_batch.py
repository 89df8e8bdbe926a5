"""How many samples a device takes at once, by cost class: what the memory plan says, unless the run does."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from models.flops import TEXT_TOKENS
from models.transformer import ContentVTransformer
from models.wan_vae import ENCODE_FLOATS
from training.checkpoint.checkpoints import State
from training.data.buckets import Bucket, shape_of
from training.data.manifest import Manifest
from training.data.plan import values
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.distributed.parallel import Parallel, local
from training.memory.measured import held_bytes
from training.memory.plan import DoesNotFit, MemoryPlan, check, plan_memory, samples_of_rank, used
from training.memory.step import Setup
from training.recipe import Recipe
from training.run import TrainingRun

GB = 1e9
FLOAT32 = 4
VAE_WIDTH = 96  # channels of the published VAE


def memory_plan(run: TrainingRun, manifest: Manifest, model: ContentVTransformer, layout: Layout) -> MemoryPlan:
    """The plan of the buckets that the manifest has, on the devices of this machine or of ``run.machine.memory_gb``.

    Args:
        model: as ``prepare`` made it; its size and what it computes again are read from it.
    """
    setup, buckets = setup_of(model, run.machine, layout), list(manifest.rows)
    other = 0 if run.encode.servers else encoder_bytes(run.recipe, run.checkpoint)
    if run.machine.device == "cpu":  # which has the whole step's batch in its memory, as it was encoded
        other += batch_bytes(run.recipe, setup, buckets)
    memory = device_memory(run.machine, layout.world)
    return plan_memory(run.recipe, setup, memory, other_bytes=other, buckets=buckets)


def setup_of(model: ContentVTransformer, machine: MachineConfig, layout: Layout) -> Setup:
    """What decides the memory of a step of a model that ``prepare`` made."""
    policy = model.recompute
    return Setup(model.config, layout, machine.dtype, policy.mode, machine.device, policy.every)


def samples_at_once(run: TrainingRun, planned: MemoryPlan) -> dict[int, int]:
    """For each number of frames, how many samples a device of this rank takes at once.

    DoesNotFit where not one fits, and the run does not say how many to take all the same.
    """
    if run.machine.micro_batch:
        return dict.fromkeys(planned.at_once, run.machine.micro_batch)
    check(planned)
    return planned.at_once


def agreed_samples_at_once(run: TrainingRun, planned: MemoryPlan, parallel: Parallel) -> dict[int, int]:
    """``samples_at_once`` of the rank that has the least memory; every rank calls it, and all get the same.

    Every micro-batch is a collective: with other sizes on another rank, both would wait for each other.

    DoesNotFit, on all ranks: on one of them not one sample fits.
    """
    if parallel.cpu_group is None or run.machine.micro_batch:
        return samples_at_once(run, planned)
    frames = sorted(planned.at_once)
    least = torch.tensor([planned.at_once[each] for each in frames])
    dist.all_reduce(least, dist.ReduceOp.MIN, group=parallel.cpu_group)  # before any rank raises
    check(planned)
    if not least.all():
        raise DoesNotFit("another rank has less memory than this one, and not one sample fits it; its error says more")
    return dict(zip(frames, least.tolist(), strict=True))


def encoder_bytes(recipe: Recipe, folder: str) -> int:
    """What VAE and text encoders take of a device that encodes for itself: their files, and a frame's working set."""
    parts = ["vae/*.safetensors"] if recipe.codec == "wan" else []
    parts += ["text_encoder*/*.safetensors"] if recipe.text == "sd3" else []
    weights = sum(file.stat().st_size for part in parts for file in Path(folder).glob(part))
    frame = ENCODE_FLOATS * VAE_WIDTH * recipe.height * recipe.width * FLOAT32
    return weights + (frame if recipe.codec == "wan" else 0)


def batch_bytes(recipe: Recipe, setup: Setup, buckets: Sequence[Bucket]) -> int:
    """The most that a data rank's samples of a step take as they were encoded: float32 latents and text embeddings.

    Those of hashed words are zeros but for a few rows, and pages of zeros that nobody writes take no memory.
    """
    config = setup.config
    text = 0 if recipe.text == "lite" else TEXT_TOKENS * config.joint_attention_dim + config.pooled_projection_dim
    return max(
        samples_of_rank(bucket, recipe, setup.layout) * (values(shape_of(bucket, recipe)) + text) * FLOAT32
        for bucket in used(recipe, buckets)
    )


def held_besides(planned: MemoryPlan, trained: State, device: torch.device) -> int:
    """Bytes that this rank holds besides what its steps take: all that is there now but what they change.

    On a CPU that is the interpreter and its libraries too, and the batch that is to come.
    """
    own = [*trained.model.parameters(), *trained.ema.state.values()]
    own += [value for values in trained.optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    held = held_bytes(device) - sum(local(tensor).nbytes for tensor in own)
    if device.type == "cpu":
        held += batch_bytes(planned.recipe, planned.setup, [each.bucket for each in planned.buckets])
    return held


def device_memory(machine: MachineConfig, world: int) -> float:
    """Bytes of a device: as the run says, or as the device reports; of a CPU, its machine's memory over the ranks here.

    ValueError: this machine has no such device to ask, as the head node of a cluster; says what to set.
    """
    if machine.memory_gb:
        return machine.memory_gb * GB
    if machine.device == "cpu":
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks_here
    accelerator = getattr(torch, machine.device, None)
    if accelerator is None or not accelerator.is_available():
        raise ValueError(
            f"this machine has no {machine.device} that could be asked for its memory, as is usual where a run is only "
            "launched; say how much a device of the cluster has: machine.memory_gb, in 10^9 bytes, such as 64"
        )
    return float(accelerator.mem_get_info()[1])
