"""How many samples a device takes at once, by cost class: what the memory plan says, unless the run does."""

import os
from pathlib import Path

import torch

from models.transformer import TransformerConfig
from models.wan_vae import ENCODE_FLOATS
from training.data.manifest import Manifest
from training.distributed.layout import Layout
from training.memory.plan import Plan, check, plan
from training.recipe import Recipe
from training.run import MachineConfig, TrainingRun

GB = 1e9
FLOAT32 = 4
VAE_WIDTH = 96  # channels of the published VAE


def memory_plan(run: TrainingRun, manifest: Manifest, config: TransformerConfig, layout: Layout) -> Plan:
    """The plan of the buckets that the manifest has, on the devices of this machine or of ``run.machine.memory_gb``."""
    machine = run.machine
    memory = device_memory(machine, layout.world)
    buckets = list(manifest.rows)
    other = 0 if run.encode.servers else encoder_bytes(run.recipe, run.checkpoint)
    kinds = machine.dtype, machine.recompute, machine.device
    return plan(run.recipe, config, layout, memory, *kinds, other_bytes=other, buckets=buckets)


def samples_at_once(run: TrainingRun, planned: Plan) -> dict[int, int]:
    """For each number of frames, how many samples a device takes at once.

    DoesNotFit where not one fits, and the run does not say how many to take all the same.
    """
    if run.machine.micro_batch:
        return dict.fromkeys(planned.at_once, run.machine.micro_batch)
    check(planned)
    return planned.at_once


def encoder_bytes(recipe: Recipe, folder: str) -> int:
    """What VAE and text encoders take of a device that encodes for itself: their files, and a frame's working set."""
    parts = ["vae/*.safetensors"] if recipe.codec == "wan" else []
    parts += ["text_encoder*/*.safetensors"] if recipe.text == "sd3" else []
    weights = sum(file.stat().st_size for part in parts for file in Path(folder).glob(part))
    frame = ENCODE_FLOATS * VAE_WIDTH * recipe.height * recipe.width * FLOAT32
    return weights + (frame if recipe.codec == "wan" else 0)


def device_memory(machine: MachineConfig, world: int) -> float:
    """Bytes of a device: as the run says, or as the device reports; of a CPU, its machine's memory over the ranks here.

    ValueError: this machine has no such device to ask.
    """
    if machine.memory_gb:
        return machine.memory_gb * GB
    if machine.device == "cpu":
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks_here
    accelerator = getattr(torch, machine.device, None)
    if accelerator is None or not accelerator.is_available():
        raise ValueError(f"this machine has no {machine.device} whose memory could be asked for; set machine.memory_gb")
    return float(accelerator.mem_get_info()[1])
