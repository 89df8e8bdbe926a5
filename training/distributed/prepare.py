"""The model that a run trains, made as the machine wants it. Nothing else applies ``MachineConfig`` to a model."""

from dataclasses import asdict

import torch

from models.transformer import ContentVTransformer, set_attention
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.distributed.parallel import Parallel, parallelize
from training.distributed.weights import fill, is_new, new_weights, read_config_of, stored_weights


def prepare(checkpoint: str, machine: MachineConfig, parallel: Parallel, seed: int) -> ContentVTransformer:
    """The model that training starts from, spread over the ranks, its weights float32.

    On ``Parallel``'s meta device (``on_meta``) it has shapes and no weights, and is not spread: preflight and the
    memory plan read from it what will be trained.

    Args:
        checkpoint: folder in the diffusers layout; or a size by its name ("tiny", "8b"), for new weights.
        seed: of new weights, which are the same on every rank and in every layout.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: keys or shapes are not those of its config, or a file is damaged.
    """
    with torch.device("meta"):
        model = ContentVTransformer(**asdict(read_config_of(checkpoint)))
    # Keys and shapes are checked here, before anything is allocated; each tensor is read or drawn when it is put.
    weights = new_weights(model.config, seed) if is_new(checkpoint) else stored_weights(model, checkpoint)
    apply_machine(model, machine, parallel)
    if parallel.device.type != "meta":
        fill(model, weights)
    return model


def apply_machine(model: ContentVTransformer, machine: MachineConfig, parallel: Parallel) -> None:
    """Have the model attend, recompute and compute as the machine says, and spread it over the ranks.

    A model of the meta device gets memory on the rank's device, with nothing in it yet.
    """
    model.recompute = machine.recomputation
    set_attention(model, parallel.attention)
    if parallel.device.type != "meta":
        parallelize(model, parallel, getattr(torch, machine.dtype))


def on_meta(layout: Layout) -> Parallel:
    """The place of a rank that computes nothing, for a model of shapes alone."""
    return Parallel(layout, 0, torch.device("meta"))
