"""Lineage: which clips a model was trained on, step by step, and how.

Every group of data writes what it trained on, in Parquet below OUT/lineage, before each checkpoint. A run that resumes
removes the records of the steps it takes again: what is there is what the weights have seen.

    python -m training.observe.lineage OUT --step 1200
    python -m training.observe.lineage OUT --clip 5a0c71...
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from media.whole_file import writing
from training.data.plan import Sample
from training.encode.reading import BadClip

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), metadata={"meaning": "from 0"}),
        pa.field("index", pa.int32(), metadata={"meaning": "place in the step's whole batch"}),
        pa.field("data_rank", pa.int32(), metadata={"meaning": "which group of ranks trained on it"}),
        pa.field("clip_id", pa.string(), metadata={"meaning": "of the manifest"}),
        pa.field("instead_of", pa.list_(pa.string()), metadata={"meaning": "clips that could not be read"}),
        pa.field("bucket", pa.string(), metadata={"meaning": "aspect ratio and whole seconds"}),
        pa.field("shape", pa.string(), metadata={"meaning": "frames x height x width trained on, pixels"}),
        pa.field("start_s", pa.float64(), metadata={"meaning": "of what was trained on, in the source"}),
        pa.field("end_s", pa.float64(), metadata={"meaning": "of what was trained on, in the source"}),
        pa.field("truncated_s", pa.float64(), metadata={"meaning": "seconds of the clip that the bucket cut off"}),
        pa.field("caption", pa.string(), metadata={"meaning": "trained with; empty: dropped for guidance"}),
        pa.field("seed", pa.int64(), metadata={"meaning": "of noise and timestep"}),
        pa.field("sigma", pa.float32(), metadata={"meaning": "noise level"}),
    ]
)


BRANCH = "branch.json"
_FILE = re.compile(r"steps-(\d{8,})-(\d{8,})\.rank-(\d{5,})\.parquet")
_CUT_OFF = re.compile(rf"\.{_FILE.pattern}\.[0-9a-f]+\.partial")  # by a crash, as media.whole_file names it


class Lineage:
    """The records of one group of data. ``write`` puts what was added since into a file of its own.

    Args:
        data_rank: the group's; None on its other ranks, which keep no records.
    """

    def __init__(self, folder: Path, data_rank: int | None, fps: int) -> None:
        self._folder, self._data_rank, self._fps = folder / "lineage", data_rank, fps
        self._rows: list[dict[str, Any]] = []

    def add(self, step: int, samples: Sequence[Sample], sigma: Tensor, bad: Sequence[Sequence[BadClip]]) -> None:
        """Note what was trained on: samples, their noise levels [B], and the clips that each of them replaces."""
        if self._data_rank is None:
            return
        for sample, level, instead_of in zip(samples, sigma.tolist(), bad, strict=True):
            clip = sample.clip
            seconds = min(sample.shape.frames / self._fps, clip.end_s - clip.start_s)
            self._rows.append(
                {
                    "step": step,
                    "index": sample.index,
                    "data_rank": self._data_rank,
                    "clip_id": clip.clip_id,
                    "instead_of": [each.clip_id for each in instead_of],
                    "bucket": str(sample.bucket),
                    "shape": str(sample.shape),
                    "start_s": clip.start_s,
                    "end_s": clip.start_s + seconds,
                    "truncated_s": clip.end_s - clip.start_s - seconds,
                    "caption": sample.caption,
                    "seed": sample.seed,
                    "sigma": level,
                }
            )

    def write(self) -> None:
        if self._rows:
            first, last = self._rows[0]["step"], self._rows[-1]["step"]
            name = f"steps-{first:08d}-{last:08d}.rank-{self._data_rank or 0:05d}.parquet"
            with writing(str(self._folder / name)) as file:
                pq.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA), file, compression="zstd")
            self._rows.clear()


def forget(folder: Path, finished_steps: int) -> None:
    """Remove the records of steps that a resumed run will take again, by one rank before any writes."""
    for path in (folder / "lineage").iterdir() if (folder / "lineage").is_dir() else ():
        found = _FILE.fullmatch(path.name)
        if (found and int(found[1]) >= finished_steps) or _CUT_OFF.fullmatch(path.name):
            path.unlink()


def write_branch(folder: Path, branch: dict[str, Any]) -> None:
    """Note that a run goes on from a checkpoint of another: which, from which step on, and what it changes."""
    with writing(str(folder / "lineage" / BRANCH)) as file:
        file.write(json.dumps(branch, indent=2).encode())


def read_branch(folder: Path) -> dict[str, Any] | None:
    """What ``write_branch`` noted; None where the run began with step 0."""
    path = folder / "lineage" / BRANCH
    branch: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return branch


def read_lineage(folder: Path, *, step: int | None = None, clip: str | None = None) -> list[dict[str, Any]]:
    """The records of one step, or of one clip, or all, in the order of training.

    FileNotFoundError where the run has left none.
    """
    import pyarrow.dataset as ds  # takes seconds, and only reading wants it

    if not (folder / "lineage").is_dir():
        raise FileNotFoundError(f"{folder} has no lineage: is it the output of a training run?")
    wanted = [ds.field(name) == value for name, value in (("step", step), ("clip_id", clip)) if value is not None]
    expression = None
    for each in wanted:
        expression = each if expression is None else expression & each
    files = sorted(str(path) for path in (folder / "lineage").iterdir() if _FILE.fullmatch(path.name))
    rows = ds.dataset(files, SCHEMA, format="parquet").to_table(filter=expression).to_pylist()
    return sorted(rows, key=lambda row: (row["step"], row["index"]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Which clips a model was trained on.")
    parser.add_argument("output", type=Path, help="output folder of a training run")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, help="the clips of one step, from 0")
    what.add_argument("--clip", help="the steps that had one clip")
    options = parser.parse_args(arguments)
    try:
        rows = read_lineage(options.output, step=options.step, clip=options.clip)
    except FileNotFoundError as problem:
        print(problem, file=sys.stderr)
        return 1
    branch = read_branch(options.output)
    if branch and (options.step is None or options.step < branch["step"]):
        print(f"steps before {branch['step']} are those of {branch['checkpoint']}: ask its own output", file=sys.stderr)
    if not rows:
        print("the records have no such step or clip", file=sys.stderr)
        return 1
    for row in rows:
        print(
            f"step {row['step']:7d}  #{row['index']:<5d} {row['clip_id']}  {row['bucket']:12} {row['shape']:12} "
            f"{row['start_s']:9.3f} to {row['end_s']:9.3f} s  cut {row['truncated_s']:5.2f} s  seed {row['seed']:19d}  "
            f"sigma {row['sigma']:.3f}  {row['caption'] or '(no caption)'}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
