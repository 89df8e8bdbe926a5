"""The published MPS, one pickled module, to safetensors and its size: done once, with the unpickling isolated."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.checkpoint import check_keys
from models.scoring.inert_pickle import state_of_pickle
from models.scoring.mps import CONFIG, MPS, PUBLISHED, WEIGHTS, MPSConfig, write_config

# Pickled by transformers 4.27, where they were stored: they are 0, 1, 2, ... and later versions compute them.
_COMPUTED = (
    "model.text_model.embeddings.position_ids",
    "model.vision_model.embeddings.position_ids",
)


@dataclass(frozen=True)
class Conversion:
    """What was written: how many tensors and parameters, which keys were dropped, which names were left inert."""

    tensors: int
    parameters: int
    dropped: list[str]
    inert: list[str]

    def __str__(self) -> str:
        dropped = f"; dropped {', '.join(self.dropped)}" if self.dropped else ""
        inert = f"; never run: {', '.join(self.inert)}" if self.inert else ""
        return f"{self.tensors} tensors, {self.parameters:,} parameters{dropped}{inert}"


def convert_mps(pickled: str | Path, folder: str | Path, *, config: MPSConfig = PUBLISHED) -> Conversion:
    """Write ``folder`` with config.json and model.safetensors, whole or not at all, in the dtype that is stored.

    Args:
        pickled: the published ``MPS_overall_checkpoint.pth``, or a state dict.
        config: the size that its keys and shapes must be of.

    Raises:
        FileExistsError: the folder is there. Weights are never overwritten.
        FileNotFoundError: there is no such file.
        PickleError: it is no pickled module (see ``inert_pickle``).
        CheckpointError: its keys or shapes are not MPS's.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already, and weights are never overwritten")
    state, inert = state_of_pickle(pickled)
    dropped = [key for key in _COMPUTED if state.pop(key, None) is not None]
    with torch.device("meta"):
        wanted = MPS(config).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in wanted.items()}
    check_keys({key: tuple(tensor.shape) for key, tensor in state.items()}, shapes, str(pickled))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        whole = Path(scratch) / folder.name
        whole.mkdir()
        write_config(config, whole / CONFIG)
        save_file({key: state[key] for key in wanted}, whole / WEIGHTS, metadata={"format": "pt"})
        os.rename(whole, folder)
    return Conversion(len(state), sum(tensor.numel() for tensor in state.values()), dropped, inert)
