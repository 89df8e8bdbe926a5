"""The files of a checkpoint: torch.distributed.checkpoint's, read without trusting them and written with clear errors.

PyTorch's reader unpickles the index (``.metadata``) and any entry that is no tensor. Here entries are tensors alone,
which are read with ``weights_only``; and of the index only PyTorch's own descriptions of tensors are unpickled.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from models.checkpoint import CheckpointError


class Writer(dcp.FileSystemWriter):
    """PyTorch's writer to a local folder, which says of a full disk that it is full."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            # The archive cannot be ended either, and torch.save says that ("unexpected pos") over the reason.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class Reader(dcp.FileSystemReader):
    """PyTorch's reader of a local folder, which unpickles of the index no more than descriptions of tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with open(Path(self.path) / ".metadata", "rb") as file:
                metadata = _Unpickler(file).load()
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"the index of checkpoint {self.path} cannot be read: {error}") from error
        for name, stored in metadata.state_dict_metadata.items():
            if not isinstance(stored, TensorStorageMetadata):
                raise CheckpointError(f"checkpoint {self.path} has more than tensors, which is not read: {name}")
        return metadata

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of all that is stored."""
        stored = self.read_metadata().state_dict_metadata
        return {name: tuple(one.size) for name, one in stored.items() if isinstance(one, TensorStorageMetadata)}


class _Unpickler(pickle.Unpickler):
    MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    CLASSES = ("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")
    OTHERS = ("StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING", "_StorageInfo")
    PLAIN = (("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"))

    def find_class(self, module: str, name: str) -> Any:
        described = module in self.MODULES and name in self.CLASSES + self.OTHERS
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if described or dtype or (module, name) in self.PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no description of a tensor")


def shapes_of(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    """By the names that PyTorch gives nested tensors."""
    return {f"{part}.{name}": tuple(one.shape) for part, named in tensors.items() for name, one in named.items()}


def read(tensors: dict[str, Any], reader: Reader, group: dist.ProcessGroup | None) -> None:
    """Read into ``tensors``, with the other ranks of ``group``. CheckpointError: it is damaged."""
    try:
        dcp.load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)
    except dcp.CheckpointException as error:
        raise CheckpointError(f"checkpoint {reader.path} is damaged: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """The first reason that a rank gives, without its traceback."""
    if isinstance(error, dcp.CheckpointException) and error.failures:
        rank, (reason, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {reason!r}"
    return repr(error)
