"""Every row of every tensor is written once, by a rank that holds it, whatever the layout; and PyTorch can read it."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from training.checkpoint.files import INDEX, Reader, write_tensors
from training.checkpoint.save_plan import Entry, SavePlan, file_name, rows_of, stage
from training.distributed.layout import Layout

SHAPES = {"weight": (7, 5), "bias": (3,), "large": (64, 9), "flat": (8, 1, 2)}
ENTRIES = tuple(
    [Entry(part, name, shape, torch.float32, True) for part in ("model", "ema") for name, shape in SHAPES.items()]
    + [Entry("optimizer", f"{name}.step", (), torch.float32, False) for name in SHAPES]
)
LAYOUTS = [Layout(), Layout(4, 4), Layout(4, 2), Layout(4, 1), Layout(256, 8), Layout(256, 256)]


def whole() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for entry in ENTRIES:
        tensors.setdefault(entry.part, {})[entry.name] = torch.randn(entry.shape)
    return tensors


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_row_is_written_once_by_a_rank_that_holds_it(layout: Layout) -> None:
    plan = SavePlan(ENTRIES, layout)
    written: dict[str, list[int]] = {entry.key: [] for entry in ENTRIES}
    for rank in range(layout.world):
        for piece in plan.share(rank):
            rows = piece.entry.shape[0] if piece.entry.shape else 1
            if piece.entry.sharded:
                first, count = rows_of(rows, layout.shard, rank % layout.shard)
                assert (piece.first, piece.rows) == (first, count)
            written[piece.entry.key] += range(piece.first, piece.first + piece.rows)
    for entry in ENTRIES:
        assert sorted(written[entry.key]) == list(range(entry.shape[0] if entry.shape else 1))


def test_rows_are_those_that_fsdp_gives_a_rank() -> None:
    for rows in (1, 3, 7, 8, 9, 64):
        for shards in (1, 2, 4, 8):
            chunks = torch.arange(rows).chunk(shards)
            found = [rows_of(rows, shards, shard) for shard in range(shards)]
            assert [count for _, count in found if count] == [len(chunk) for chunk in chunks]
            assert [first for first, count in found if count] == [int(chunk[0]) for chunk in chunks]


def test_copies_of_the_model_share_what_is_written() -> None:
    entries = tuple(Entry("model", str(n), (8 * (n + 1), 16), torch.float32, True) for n in range(100))
    plan = SavePlan(entries, Layout(64, 8))
    bytes_of = [sum(p.rows * p.entry.nbytes // p.entry.shape[0] for p in plan.share(rank)) for rank in range(64)]
    assert sum(bytes_of) == sum(entry.nbytes for entry in entries)
    assert max(bytes_of) < 1.1 * sum(bytes_of) / 64


def test_only_what_a_rank_writes_is_copied() -> None:
    tensors = whole()
    shares = [SavePlan(ENTRIES, Layout(4, 1)).share(rank) for rank in range(4)]
    staged = [stage(tensors, share) for share in shares]
    assert sum(t.nbytes for own in staged for t in own) == sum(entry.nbytes for entry in ENTRIES)
    before = staged[0][0].clone()
    for named in tensors.values():
        for tensor in named.values():
            tensor.zero_()
    assert torch.equal(staged[0][0], before)


@pytest.mark.parametrize("layout", [Layout(), Layout(4, 2), Layout(4, 1), Layout(6, 3)], ids=str)
def test_pytorch_itself_reads_what_was_written(layout: Layout, tmp_path: Path) -> None:
    tensors, plan = whole(), SavePlan(ENTRIES, layout)
    spans = []
    for rank in range(layout.world):
        own = []
        for piece in plan.share(rank):
            tensor = tensors[piece.entry.part][piece.entry.name]
            own.append(tensor[piece.first : piece.first + piece.rows].clone() if piece.entry.shape else tensor.clone())
        spans.append(write_tensors(tmp_path / file_name(rank), own))
    (tmp_path / INDEX).write_bytes(plan.index(spans))
    for reader in (dcp.FileSystemReader(tmp_path), Reader(tmp_path)):
        found = {part: {name: torch.zeros_like(t) for name, t in named.items()} for part, named in tensors.items()}
        dcp.load(found, storage_reader=reader, no_dist=True)
        for part, named in tensors.items():
            assert all(torch.equal(tensor, found[part][name]) for name, tensor in named.items())
    described = dcp.FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    assert all(isinstance(one, TensorStorageMetadata) for one in described.values())


def test_an_index_of_256_ranks_has_as_many_pieces_as_one_copy_of_the_model() -> None:
    entries = tuple(Entry("model", str(n), (64, 2), torch.float32, True) for n in range(50))
    pieces = [len(SavePlan(entries, Layout(256, 8)).share(rank)) for rank in range(256)]
    assert sum(pieces) == 50 * 8
