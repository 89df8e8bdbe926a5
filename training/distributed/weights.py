"""Where training starts: weights from a checkpoint, or new ones, into a model that may be spread over ranks.

Each rank reads or draws one tensor after the other, and keeps its own shard: a machine of eight ranks never holds
eight copies of the model.
"""

import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from models.checkpoint import CONFIGS, Stored, check_stored, network_folder, read_config
from models.transformer import ContentVTransformer, TransformerConfig, initialise_layer

Weights = Iterator[tuple[str, Tensor]]  # each with its name in the state dict, whole, on the CPU


def stored_weights(model: ContentVTransformer, checkpoint: str) -> Weights:
    """The tensors of a checkpoint's folder, read one by one as they are asked for.

    Raises, before any is read:
        FileNotFoundError: there is none.
        CheckpointError: keys or shapes are not the model's, or a file is damaged.
    """
    return _read(check_stored(network_folder(checkpoint), model.config))


def _read(stored: dict[str, Stored]) -> Weights:
    for name, each in stored.items():
        with safe_open(each.file, framework="pt") as file:
            yield name, file.get_tensor(each.key)


def new_weights(config: TransformerConfig, seed: int) -> Weights:
    """Weights to train from nothing, drawn layer by layer as they are asked for.

    A layer's draws depend on the seed and on its name alone, so they are the same on every rank.
    """
    with torch.device("meta"):
        blueprint = ContentVTransformer(**asdict(config))
    for name, layer in blueprint.named_modules():
        if not any(True for _ in layer.parameters(recurse=False)):
            continue
        layer.to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            initialise_layer(name, layer)
        yield from ((f"{name}.{part}", tensor) for part, tensor in layer.named_parameters())
        layer.to("meta")


@torch.no_grad()
def fill(model: ContentVTransformer, weights: Weights) -> None:
    """Put weights into a model that is where it will be trained, each rank its own part of each."""
    targets = model.state_dict(keep_vars=True)
    for name, whole in weights:
        target = targets.pop(name)
        if isinstance(target, DTensor):
            own = whole.to(target.device, torch.float32)
            target.copy_(distribute_tensor(own, target.device_mesh, target.placements, src_data_rank=None))
        else:
            target.copy_(whole)
    if targets:
        raise ValueError(f"no weights were given for {', '.join(targets)}")


def is_new(checkpoint: str) -> bool:
    """Whether it names a size, and no folder."""
    return (CONFIGS / f"{checkpoint}.json").is_file() and not Path(checkpoint).is_dir()


def read_config_of(checkpoint: str) -> TransformerConfig:
    """The size of the model that training starts from. FileNotFoundError: there is none."""
    return read_config(checkpoint if is_new(checkpoint) else network_folder(checkpoint))
