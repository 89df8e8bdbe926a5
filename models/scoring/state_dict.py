"""State dicts of the networks that judge, as they are published: safetensors, or a file of torch.save that needs no
unpickling of anything but tensors."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoint import CheckpointError
from models.scoring.loading import read_safetensors

ZIPPED, PLAIN = b"PK\x03\x04", b"\x80\x02\x8a\n"  # how files of torch.save begin, today's and those before 1.6
WRAPPERS = ("model", "state_dict")  # under which training programs keep the weights, beside optimizer and step


def read_state_dict(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a file of torch.save, on the CPU and mapped where that is possible.

    A file of torch.save is opened with ``weights_only=True``: code in it is refused, never run. It holds the tensors
    themselves, or ``{"model": tensors, ...}`` as training programs write it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, holds more than tensors, or no tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"weights are missing: {file}")
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    return _tensors(_unpickled(file), file)


def conversion(file: str | Path) -> str:
    """The command that makes safetensors of a pickle, beside it."""
    return f"python -m models.scoring.inert_pickle '{file}' '{Path(file).with_suffix('.safetensors')}'"


def _unpickled(file: Path) -> Any:
    with file.open("rb") as content:
        start = content.read(4)
    damaged = f"{file} is damaged: cut off or no file of torch.save; fetch it again"
    if start not in (ZIPPED, PLAIN):
        raise CheckpointError(f"{damaged} (it begins with {start!r})")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The first lines of the message advise to run what is in the file: they are not passed on.
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise CheckpointError(
            f"{file} holds more than weights, and is not opened, as that could run code from it ({reason}). Convert it "
            f"once, in a process that runs none of it: {conversion(file)}"
        ) from None
    except (RuntimeError, EOFError, ValueError, LookupError) as error:
        raise CheckpointError(f"{damaged} ({error})") from error


def _tensors(found: Any, file: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{file} holds no state dict: neither tensors by name, nor such under 'model'")
    return dict(found)
