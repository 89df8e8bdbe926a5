"""Where training starts: weights from a checkpoint, or new ones, into a model that may be spread over ranks.

Each rank reads from the file, one tensor after the other, and keeps its own shard: a machine of eight ranks never
holds eight copies of the model.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from models.checkpoint import CONFIGS, check_keys, network_folder, read_config, stored_tensors
from models.transformer import ContentVTransformer, TransformerConfig
from training.distributed.parallel import Parallel, parallelize


def starting_model(checkpoint: str, parallel: Parallel, dtype: torch.dtype, seed: int) -> ContentVTransformer:
    """The model that training starts from, spread over the ranks, its weights float32.

    Args:
        checkpoint: folder in the diffusers layout; or a size by its name ("tiny", "8b"), for new weights.
        seed: of new weights, which are the same on every rank.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: keys or shapes are not those of its config, or a file is damaged.
    """
    with torch.device("meta"):
        model = ContentVTransformer(**asdict(read_config_of(checkpoint)))
    if is_new(checkpoint):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = ContentVTransformer(**asdict(model.config)).state_dict()
        place(model, parallel, dtype)
        for name, target in model.state_dict(keep_vars=True).items():
            _put(state.pop(name), target)
        return model
    folder = network_folder(checkpoint)
    stored = stored_tensors(folder)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_keys({name: each.shape for name, each in stored.items()}, wanted, f"checkpoint {folder}")
    place(model, parallel, dtype)
    for name, target in model.state_dict(keep_vars=True).items():
        with safe_open(stored[name].file, framework="pt") as file:
            _put(file.get_tensor(stored[name].key), target)
    return model


def place(model: ContentVTransformer, parallel: Parallel, dtype: torch.dtype) -> None:
    """Spread a model of the meta device over the ranks; its weights are memory with nothing in it yet."""
    if parallel.layout.world == 1 and dtype == torch.float32:
        model.to_empty(device=parallel.device)  # nothing to spread
    parallelize(model.float(), parallel, dtype)
    if next(model.parameters()).is_meta:
        model.to_empty(device=parallel.device)


def is_new(checkpoint: str) -> bool:
    """Whether it names a size, and no folder."""
    return (CONFIGS / f"{checkpoint}.json").is_file() and not Path(checkpoint).is_dir()


def read_config_of(checkpoint: str) -> TransformerConfig:
    """The size of the model that training starts from. FileNotFoundError: there is none."""
    return read_config(checkpoint if is_new(checkpoint) else network_folder(checkpoint))


@torch.no_grad()
def _put(whole: Tensor, target: Tensor) -> None:
    if isinstance(target, DTensor):
        own = whole.to(target.device, torch.float32)
        target.copy_(distribute_tensor(own, target.device_mesh, target.placements, src_data_rank=None))
    else:
        target.copy_(whole)
