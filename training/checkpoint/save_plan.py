"""Who writes which rows of which tensor: a function of the tensors' shapes and the layout of the ranks, and no more.

So every rank knows its own share, rank 0 knows all of them, and no plans are exchanged. Ranks that hold the same shard
share its tensors out by size. From its share each rank copies to the CPU what it writes, and nothing else.
"""

import heapq
import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.tensor import DTensor, Replicate, Shard

from training.distributed.layout import Layout
from training.distributed.parallel import local

Tensors = Mapping[str, Mapping[str, Tensor]]  # part of a state -> name -> tensor


@dataclass(frozen=True)
class Entry:
    """A tensor of a state. ``sharded``: the ranks of a shard group hold its rows in equal parts; else each has all."""

    part: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sharded: bool

    @property
    def key(self) -> str:
        """The name that PyTorch gives a tensor in nested dictionaries."""
        return f"{self.part}.{self.name}"

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor that one rank writes: ``rows`` from ``first`` on, whole where the tensor is not sharded."""

    entry: Entry
    first: int
    rows: int


def entries_of(tensors: Tensors) -> tuple[Entry, ...]:
    """The tensors of a state, in their order. ValueError: one is sharded in another way than FSDP does, by rows."""
    return tuple(
        Entry(part, name, tuple(tensor.shape), tensor.dtype, _sharded(f"{part}.{name}", tensor))
        for part, named in tensors.items()
        for name, tensor in named.items()
    )


@dataclass(frozen=True)
class SavePlan:
    """How the ranks of ``layout`` write a state made of ``entries``."""

    entries: tuple[Entry, ...]
    layout: Layout

    @cached_property
    def writers(self) -> list[int]:
        """For each entry the copy of the model whose ranks write it: the one that has the fewest bytes so far."""
        loads = [(0, copy) for copy in range(self.layout.replicas)]
        chosen = [0] * len(self.entries)
        for number in sorted(range(len(self.entries)), key=lambda n: -self.entries[n].nbytes):
            load, copy = loads[0]
            chosen[number] = copy
            heapq.heapreplace(loads, (load + self.entries[number].nbytes, copy))
        return chosen

    def share(self, rank: int) -> list[Piece]:
        """What ``rank`` writes, in the order of its file."""
        return [piece for number in range(len(self.entries)) for r, piece in self._pieces(number, rank) if r == rank]

    def _pieces(self, number: int, only: int | None = None) -> Iterator[tuple[int, Piece]]:
        """The pieces of an entry with the ranks that write them; of one rank ``only``, where that is known sooner."""
        entry, shards = self.entries[number], self.layout.shard
        begin = self.writers[number] * shards
        if not entry.sharded:
            yield begin + number % shards, Piece(entry, 0, entry.shape[0] if entry.shape else 1)
            return
        if only is not None and not begin <= only < begin + shards:
            return
        for rank in range(begin, begin + shards) if only is None else (only,):
            first, rows = rows_of(entry.shape[0], shards, rank - begin)
            if rows:
                yield rank, Piece(entry, first, rows)

    def index(self, spans: Sequence[Tensor]) -> bytes:
        """The index of a checkpoint in the format of torch.distributed.checkpoint (its file ``.metadata``).

        Args:
            spans: for each rank, where its pieces are in its file: int64 [pieces or more, 2], first byte and length.
        """
        described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        stored: dict[MetadataIndex, _StorageInfo] = {}
        files = [file_name(rank) for rank in range(self.layout.world)]
        left = [iter(span.tolist()) for span in spans]
        for number, entry in enumerate(self.entries):
            chunks = []
            for rank, piece in self._pieces(number):
                offsets = torch.Size((piece.first, *(0 for _ in entry.shape[1:]))[: len(entry.shape)])
                sizes = torch.Size((piece.rows, *entry.shape[1:])[: len(entry.shape)])
                chunks.append(ChunkStorageMetadata(offsets, sizes))
                first, length = next(left[rank])
                stored[MetadataIndex(entry.key, offsets)] = _StorageInfo(files[rank], first, length)
            properties = TensorProperties(dtype=entry.dtype)
            described[entry.key] = TensorStorageMetadata(properties, torch.Size(entry.shape), chunks)
        names = {entry.key: (entry.part, entry.name) for entry in self.entries}
        buffer = io.BytesIO()
        pickle.dump(Metadata(described, names, stored, StorageMeta()), buffer)
        return buffer.getvalue()


def stage(tensors: Tensors, share: Sequence[Piece]) -> list[Tensor]:
    """Copies on the CPU of what a rank writes, one after the other; later changes of ``tensors`` do not reach them."""
    staged = []
    for piece in share:
        own = local(tensors[piece.entry.part][piece.entry.name].detach())
        staged.append(own.to("cpu", copy=True, memory_format=torch.contiguous_format))
    return staged


def rows_of(rows: int, shards: int, shard: int) -> tuple[int, int]:
    """The first of the rows that a shard holds, and how many: as FSDP shares them out, the last ones may have none."""
    most = -(-rows // shards)
    first = min(rows, shard * most)
    return first, min(rows, first + most) - first


def file_name(rank: int) -> str:
    """The file of a rank's tensors, as torch.distributed.checkpoint names it."""
    return f"__{rank}_0.distcp"


def _sharded(key: str, tensor: Tensor) -> bool:
    if not isinstance(tensor, DTensor):
        return False
    *copies, shard = tensor.placements
    if shard != Shard(0) or any(copy != Replicate() for copy in copies):
        raise ValueError(f"{key} is sharded as {tensor.placements}; checkpoints are of tensors sharded by rows")
    return True
