"""What a checkpoint of 256 ranks costs rank 0, beside what every rank does; simulated in one process, on one core.

    python -m benchmarks.checkpoint [--size 8b] [--world 256] [--shard 8]

Tensors have no content here (the meta device), and no rank but this one exists: what rank 0 does in a save is run as it
is, on what the other ranks would have sent. Processor time is Python's, with the interpreter's lock held, so training
waits for it. The peer is torch.distributed.checkpoint as it is used by default: it gathers a pickled plan of every rank
on rank 0. Unpickling is measured on plans of some ranks, and multiplied.

Also: how fast stored tensors are read and checked, against reading them unchecked.
"""

import argparse
import gc
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan as PeerPlan
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from models.checkpoint import read_config
from models.transformer import ContentVTransformer
from training.checkpoint.checkpoints import _same
from training.checkpoint.files import INDEX, Reader, write_tensors
from training.checkpoint.save_plan import Entry, SavePlan, file_name, rows_of
from training.distributed.layout import Layout

PEER_RANKS = 4  # whose plans are unpickled, for the time of one
READ_MB = 256


def entries_of_size(size: str) -> tuple[Entry, ...]:
    """The state of a model in training: weights, their average, and AdamW's two moments and count of steps of each."""
    with torch.device("meta"):
        model = ContentVTransformer(**asdict(read_config(size)))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    entries = [
        Entry(part, name, shape, torch.float32, True) for part in ("model", "ema") for name, shape in shapes.items()
    ]
    for name, shape in shapes.items():
        entries.append(Entry("optimizer", f"state.{name}.step", (), torch.float32, False))
        entries += [
            Entry("optimizer", f"state.{name}.{m}", shape, torch.float32, True) for m in ("exp_avg", "exp_avg_sq")
        ]
    return tuple(entries)


@contextmanager
def seconds(into: dict[str, float], name: str) -> Iterator[None]:
    """Processor time of this thread."""
    began = time.thread_time()
    yield
    into[name] = time.thread_time() - began


def ours(entries: tuple[Entry, ...], layout: Layout) -> tuple[dict[str, float], dict[str, float], int]:
    """What rank 0 does beside writing its tensors, in the first save and in the next; and the bytes that it copies."""
    first: dict[str, float] = {}
    plan = SavePlan(entries, layout)
    with seconds(first, "own share, as every rank"):
        share = plan.share(0)
    spans = [torch.tensor([(1000 * n, 1000) for n in range(len(plan.share(rank)))]) for rank in range(layout.world)]
    most = max(map(len, spans))
    spans = [torch.nn.functional.pad(span, (0, 0, 0, most - len(span))) for span in spans]
    with seconds(first, "index of all"):
        index = plan.index(spans)
    with tempfile.TemporaryDirectory() as folder, seconds(first, "index to disk"):
        (Path(folder) / INDEX).write_bytes(index)
    later: dict[str, float] = {}
    again = [span.clone() for span in spans]
    with seconds(later, "all is where it was"):
        assert _same(spans, again)
    with tempfile.TemporaryDirectory() as folder, seconds(later, "index to disk"):
        (Path(folder) / INDEX).write_bytes(index)
    print(f"index: {len(index) / 2**20:.1f} MiB, written by rank 0")
    copied = sum(p.entry.nbytes // (p.entry.shape[0] if p.entry.shape else 1) * p.rows for p in share)
    return first, later, copied


def peer(entries: tuple[Entry, ...], layout: Layout) -> dict[str, float]:
    """What rank 0 does with the plans of all ranks, as torch.distributed.checkpoint makes them."""
    found: dict[str, float] = {}
    plans = [peer_plan(entries, layout, rank) for rank in range(layout.shard)]
    sent = [pickle.dumps(plan) for plan in plans[:PEER_RANKS]]
    with seconds(found, "unpickling plans"):
        for content in sent:
            pickle.loads(content)
    found["unpickling plans"] *= layout.world / len(sent)
    every = [replace(plans[rank % layout.shard]) for rank in range(layout.world)]
    planner = dcp.DefaultSavePlanner()
    planner.set_up_planner({}, is_coordinator=True)
    with seconds(found, "one plan of all"):
        planned, metadata = planner.create_global_plan(every)
    with seconds(found, "pickling answers and index"):
        for plan in planned:
            pickle.dumps(plan)
        pickle.dumps(metadata)
    return found


def peer_plan(entries: tuple[Entry, ...], layout: Layout, rank: int) -> PeerPlan:
    items = []
    for entry in entries:
        first, rows = rows_of(entry.shape[0], layout.shard, rank % layout.shard) if entry.sharded else (0, 0)
        offsets = torch.Size((first, *(0 for _ in entry.shape[1:])) if entry.sharded else ())
        sizes = torch.Size((rows, *entry.shape[1:]) if entry.sharded else ())
        data = TensorWriteData(
            ChunkStorageMetadata(offsets, sizes), TensorProperties(dtype=entry.dtype), torch.Size(entry.shape)
        )
        kind = WriteItemType.SHARD if entry.sharded else WriteItemType.TENSOR
        if rows or not entry.sharded:
            items.append(WriteItem(MetadataIndex(entry.key, offsets), kind, tensor_data=data))
    return PeerPlan(items, planner_data={entry.key: (entry.part, entry.name) for entry in entries})


def reading() -> tuple[float, float]:
    """GB/s of reading one checkpoint from the page cache: checked, and by PyTorch's reader, which checks nothing."""
    tensors = {"model": {str(n): torch.randn(READ_MB // 8, 2**18) for n in range(8)}}
    entries = tuple(Entry("model", name, tuple(t.shape), t.dtype, True) for name, t in tensors["model"].items())
    plan = SavePlan(entries, Layout())
    with tempfile.TemporaryDirectory() as folder:
        spans = [write_tensors(Path(folder) / file_name(0), tensors["model"].values())]
        (Path(folder) / INDEX).write_bytes(plan.index(spans))
        total = sum(entry.nbytes for entry in entries) / 1e9

        def speed(reader: Callable[[], Any]) -> float:
            best = min(timed(lambda: dcp.load(tensors, storage_reader=reader(), no_dist=True)) for _ in range(3))
            return total / best

        return speed(lambda: Reader(folder)), speed(lambda: dcp.FileSystemReader(folder))


def timed(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


def show(title: str, found: dict[str, float]) -> float:
    total = sum(found.values())
    print(f"{title}: {total:.2f} s", *(f"  {name} {value:.2f}" for name, value in found.items()), sep="\n")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.checkpoint", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="8b")
    parser.add_argument("--world", type=int, default=256)
    parser.add_argument("--shard", type=int, default=8)
    parser.add_argument("--no-peer", action="store_true", help="leave the peer out, which takes minutes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    layout, entries = Layout(given.world, given.shard), entries_of_size(given.size)
    held = sum(entry.nbytes // (layout.shard if entry.sharded else 1) for entry in entries)
    print(f"{given.size}: {len(entries)} tensors, {layout.world} ranks in groups of {layout.shard}")
    gc.disable()  # as in training
    first, later, copied = ours(entries, layout)
    one, two = show("ours, first save", first), show("ours, each save after", later)
    print(f"copied to the CPU by rank 0: {copied / 2**30:.2f} GiB of the {held / 2**30:.2f} that it holds")
    checked, unchecked = reading()
    print(f"reading: {checked:.2f} GB/s checked, {unchecked:.2f} by PyTorch's reader, ratio {checked / unchecked:.2f}")
    if not given.no_peer:
        total = show("torch.distributed.checkpoint, each save", peer(entries, layout))
        print(f"ours over peer: {one / total:.4f} in the first save, {two / total:.5f} after")


if __name__ == "__main__":
    main()
