"""The files of a checkpoint in the format of torch.distributed.checkpoint, read without trusting them.

PyTorch's reader unpickles the index (``.metadata``) and any entry that is no tensor. Here entries are tensors alone,
which are read with ``weights_only``; and of the index only PyTorch's own descriptions of tensors are unpickled.

An entry is what ``torch.save`` writes: a ZIP archive, with a CRC-32 of every record. PyTorch never compares it; here
every entry is checked when it is read, so that flipped bits are an error and no weights.
"""

import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

from models.checkpoint import CheckpointError
from training.distributed.agreement import shared_failure

INDEX = ".metadata"


def write_tensors(path: Path, tensors: Iterable[Tensor]) -> Tensor:
    """Write tensors into one file, to the disk; returns where each is: int64 [n, 2], first byte and length.

    OSError: the disk is full, or the folder cannot be written.
    """
    spans = []
    with path.open("wb") as file:
        for tensor in tensors:
            first = file.tell()
            try:
                torch.save(tensor, file)
            except RuntimeError as error:
                # The archive cannot be ended either, and torch.save says that ("unexpected pos") over the reason.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            spans.append((first, file.tell() - first))
        file.flush()
        os.fsync(file.fileno())
    return torch.tensor(spans, dtype=torch.int64).view(-1, 2)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk: a rename is there when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Reader(dcp.FileSystemReader):
    """PyTorch's reader of a local folder, which unpickles of the index no more than descriptions of tensors.

    Args:
        crc32: what the index must have; None for a checkpoint of an earlier release, which does not say.
    """

    def __init__(self, path: str | Path, crc32: int | None = None) -> None:
        super().__init__(path)
        self.metadata = self._index(crc32)
        self.storage_data = self.metadata.storage_data

    def _index(self, crc32: int | None) -> Metadata:
        try:
            content = (Path(self.path) / INDEX).read_bytes()
            if crc32 is not None and zlib.crc32(content) != crc32:
                raise pickle.UnpicklingError("its checksum is another")
            metadata = _Unpickler(io.BytesIO(content)).load()
            described = metadata.state_dict_metadata.items()
        except Exception as error:  # damage can make a pickle fail in any way
            raise CheckpointError(f"the index of checkpoint {self.path} cannot be read: {error}") from error
        for name, stored in described:
            if not isinstance(stored, TensorStorageMetadata):
                raise CheckpointError(f"checkpoint {self.path} has more than tensors, which is not read: {name}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        return metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of all that is stored."""
        stored = self.metadata.state_dict_metadata
        return {name: tuple(one.size) for name, one in stored.items() if isinstance(one, TensorStorageMetadata)}

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> torch.futures.Future[None]:
        """Read what ``plan`` asks for, each stored tensor once, and check it. CheckpointError: a file is damaged."""
        wanted: dict[tuple[str, int, int], list[ReadItem]] = {}
        for item in plan.items:
            place = self.storage_data[item.storage_index]
            wanted.setdefault((place.relative_path, place.offset, place.length), []).append(item)
        for (name, first, length), items in sorted(wanted.items(), key=lambda one: one[0]):
            stored = self._tensor(name, first, length)
            for item in items:
                part = stored
                for axis, (begin, count) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    part = part.narrow(axis, begin, count)
                target = planner.resolve_tensor(item).detach()
                target.copy_(part)
                planner.commit_tensor(item, target)
        done: torch.futures.Future[None] = torch.futures.Future()
        done.set_result(None)
        return done

    def _tensor(self, name: str, first: int, length: int) -> Tensor:
        if os.path.basename(name) != name:
            raise CheckpointError(f"checkpoint {self.path} names a file outside of it: {name}")
        with (Path(self.path) / name).open("rb") as file:
            file.seek(first)
            content = file.read(length)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                wrong = archive.testzip()
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError, EOFError) as error:
            wrong = str(error)
        if wrong is not None:
            raise CheckpointError(f"{name}, bytes {first} to {first + length}, are not what was written: {wrong}")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


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
    """Read into ``tensors``, each rank its own shards; the ranks of ``group`` tell each other only whether they could.

    CheckpointError, on all ranks: it is damaged.
    """
    failure: Exception | None = None
    try:
        planner = dcp.DefaultLoadPlanner()
        planner.set_up_planner(tensors, reader.metadata, is_coordinator=True)
        reader.read_data(planner.create_local_plan(), planner)
    except Exception as error:
        failure = error
    if words := shared_failure(failure, group):
        raise CheckpointError(f"checkpoint {reader.path} is damaged: {words}") from failure
