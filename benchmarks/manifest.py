"""What opening a manifest costs at scale, and the first step of an epoch.

    python -m benchmarks.manifest                       # 10 M clips, 8 ranks on one machine, 60 M images
    python -m benchmarks.manifest --clips 1 --images 6  # in millions

Clips are made up, with captions as long as dense ones are. Each rank is a process of its own. Its memory is what is its
own (Pss of anonymous pages), beyond what Python and PyTorch take: the mapped file is the page cache's, one for all, and
is shown beside it. Beside the time of the copy stands that of a plain copy of as many bytes, in the same run.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.data.buckets import ASPECTS, Bucket
from training.data.manifest import SCHEMA, Manifest, open_manifest
from training.data.plan import BatchPlan, CostClass, Job
from training.recipe import load_recipe

ROWS_IN_FILE = 50_000  # as curation writes them
WORDS = 90  # of a detailed caption; a short one has a dozen
MILLION = 10**6
MB, GB = 10**6, 10**9


@dataclass(frozen=True)
class Opened:
    """What one rank measured: seconds, of the clock and of the processor, and bytes."""

    seconds: float
    processor_s: float
    first_step_s: float
    own_bytes: int
    mapped_bytes: int


def write_manifest(folder: Path, clips: int) -> None:
    """Parquet files of so many made-up clips, four fifths of them videos of 3 to 6 s."""
    random = np.random.default_rng(0)
    words = np.array([f"{a}{b}{c}" for a in "bdgkmst" for b in "aeiou" for c in ("n", "r", "lt", "sh", "ng")])
    kinds = [(aspect, seconds) for aspect in ASPECTS for seconds in (3, 4, 5, 6, 0)]
    files = -(-clips // ROWS_IN_FILE)
    captions = pa.array(
        [" ".join(random.choice(words, random.integers(WORDS // 2, WORDS * 3 // 2))) for _ in range(4096)]
    )
    for number in range(files):
        count = min(ROWS_IN_FILE, clips - number * ROWS_IN_FILE)
        aspect, seconds = kinds[number % len(kinds)]
        ids = pa.array(random.integers(0, 2**63, count)).cast(pa.string())
        named = pa.array(np.arange(count) + number * ROWS_IN_FILE).cast(pa.string())
        text = captions.take(pa.array(random.integers(0, len(captions), count)))
        detailed = pc.binary_join_element_wise(text, named, " ")
        start = random.integers(0, 500, count).astype(np.float64)
        whole: dict[str, Any] = {
            "clip_id": pc.binary_join_element_wise(named, ids, "-"),
            "source_uri": pc.binary_join_element_wise("s3://bucket/videos/", named, ".mp4", ""),
            "start_s": start,
            "end_s": start + seconds,
            "width": np.full(count, 1280),
            "height": np.full(count, 720),
            "crop_x": np.zeros(count, int),
            "crop_y": np.zeros(count, int),
            "crop_w": np.full(count, 1280),
            "crop_h": random.choice([360, 480, 720], count),
            "caption_short": pc.utf8_slice_codeunits(detailed, 0, 60),
            "caption_detailed": detailed,
            "bucket_aspect": pa.array([aspect]).take(pa.array(np.zeros(count, int))),
            "bucket_duration_s": np.full(count, seconds),
            "source_id": ids,
            "source_bytes": random.integers(10**6, 10**10, count),
        }
        table = pa.table({name: pa.array(whole[name]).cast(SCHEMA.field(name).type) for name in SCHEMA.names})
        pq.write_table(table, folder / f"part-{number:05d}.parquet", compression="zstd")


def rank(folder: str, cache: str, barrier: Barrier, answers: Any) -> None:
    before = memory()[0]  # PyTorch and the like, which a rank has in any case
    barrier.wait()
    began, worked = time.perf_counter(), time.process_time()
    manifest = open_manifest([folder], Path(cache))
    plan = planned(manifest)
    opened, worked = time.perf_counter(), time.process_time() - worked
    plan.samples(0)
    plan.values(0)
    seconds = time.perf_counter() - opened
    barrier.wait()  # all hold what they hold
    own, mapped = memory()
    answers.put(Opened(opened - began, worked, seconds, own - before, mapped))
    barrier.wait()


def planned(manifest: Manifest) -> BatchPlan:
    job = Job(recipe=load_recipe("stage3"), seed=0, manifest=manifest.fingerprint)
    return BatchPlan(manifest, job)


def memory() -> tuple[int, int]:
    """This process's own bytes, and its part of the files that it maps."""
    lines = dict(line.split()[:2] for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(lines["Pss_Anon:"]) * 1024, int(lines["Pss_File:"]) * 1024


def machine(folder: Path, cache: Path, ranks: int) -> list[Opened]:
    """Open the manifest with so many processes at once."""
    spawned = multiprocessing.get_context("spawn")
    barrier, answers = spawned.Barrier(ranks), spawned.Queue()
    processes = [spawned.Process(target=rank, args=(str(folder), str(cache), barrier, answers)) for _ in range(ranks)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return found


def copied(folder: Path, target: Path, size: int) -> float:
    """Seconds that it takes to read the Parquet files' bytes and to write ``size`` bytes: no copy is faster."""
    began = time.perf_counter()
    block = b""
    for path in sorted(folder.glob("*.parquet")):
        block = path.read_bytes()
    with target.open("wb") as file:
        for _ in range(size // len(block) + 1):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    target.unlink()
    return time.perf_counter() - began


def first_step(images: int, folder: Path) -> tuple[float, int]:
    """Seconds of the first 128 images of an epoch, and the bytes that the process takes for it."""
    path = folder / "rows.npy"
    np.save(path, np.arange(images))
    rows = np.load(path, mmap_mode="r")
    before = memory()[0]
    began = time.perf_counter()
    drawn = CostClass({Bucket(0, "1x1"): rows}, run=128, key=(0,))
    for epoch in range(3):
        list(drawn.runs(epoch * drawn.runs_in_epoch, 1))
    return (time.perf_counter() - began) / 3, memory()[0] - before


def measured(do: Callable[[], list[Opened]]) -> str:
    found = do()
    own, mapped = sum(each.own_bytes for each in found), sum(each.mapped_bytes for each in found)
    worked, step = [each.processor_s for each in found], max(each.first_step_s for each in found)
    return (
        f"{max(each.seconds for each in found):.2f} s ({sum(worked):.2f} s of the processor, {max(worked):.2f} s of "
        f"one rank), first step {step:.3f} s, "
        f"{own / GB:.2f} GB of {len(found)} ranks' own, {mapped / GB:.2f} GB mapped"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=float, default=10, help="millions")
    parser.add_argument("--images", type=float, default=60, help="millions")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--folder", help="for the files; by default a temporary one")
    options = parser.parse_args()
    clips, images = int(options.clips * MILLION), int(options.images * MILLION)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, cache = Path(name) / "manifest", Path(name) / "cache"
        folder.mkdir()
        seconds, size = first_step(images, Path(name))
        print(f"first step of an epoch of {images:,} images: {seconds:.4f} s, {size / MB:.1f} MB", flush=True)
        write_manifest(folder, clips)
        print(f"{clips:,} clips, {sum(p.stat().st_size for p in folder.iterdir()) / GB:.2f} GB of Parquet", flush=True)
        print(f"cold: {measured(lambda: machine(folder, cache, options.ranks))}", flush=True)
        written = sum(path.stat().st_size for path in cache.glob("**/*.arrow"))
        print(f"  the copy is {written / GB:.2f} GB", flush=True)
        print(f"warm: {measured(lambda: machine(folder, cache, options.ranks))}", flush=True)
        shutil.rmtree(cache)
        alone = copied(folder, Path(name) / "bytes", written)
        print(f"reading the Parquet and writing as many bytes alone: {alone:.2f} s")


if __name__ == "__main__":
    main()
