"""Weights into a network that judges: every key and shape is the network's, or nothing is loaded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.checkpoint import CheckpointError, check_keys

Network = TypeVar("Network", bound=nn.Module)


class _WeightsOnMeta(TorchFunctionMode):
    """Makes ``torch.empty``, which all layers make their weights with, take no memory.

    The meta device would also take away what is computed and not stored (positions, frequencies): here it stays.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def build(
    make: Callable[[], Network],
    state: Mapping[str, Tensor],
    source: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Network:
    """The frozen network that ``make`` makes, with these weights, in evaluation mode.

    Args:
        source: what errors call the weights, such as the name of their file.
        dtype: of the floating-point weights; by default as they are.

    Raises:
        CheckpointError: keys are missing or unexpected, or shapes differ; the first are named.
    """
    with _WeightsOnMeta():
        network = make()
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    check_keys({key: tuple(tensor.shape) for key, tensor in state.items()}, shapes, source)
    network.load_state_dict({key: tensor.to(device) for key, tensor in state.items()}, assign=True)
    return network.to(device, dtype).eval().requires_grad_(False)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file. CheckpointError if it is damaged, FileNotFoundError if it is not there."""
    if not file.is_file():
        raise FileNotFoundError(f"weights are missing: {file}")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is cut off or no safetensors file; fetch it again ({error})") from error
