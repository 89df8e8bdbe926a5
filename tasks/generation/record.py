"""What a run of generation leaves besides its videos: OUT/run.json."""

import json
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from tasks.tables import storage
from tasks.tables.run_record import seconds_by_step
from tasks.tables.step import Row

PACKAGES = ("contentv", "av", "diffusers", "numpy", "prefect", "pyarrow", "safetensors", "torch", "transformers")


class NothingGenerated(Exception):
    """The run ended well and there is no video; the message says what went wrong most often."""


def rows_of(tables: Sequence[str]) -> list[Row]:
    """The rows of all batches, in order."""
    return [row for table in tables for row in storage.read_table(table).to_pylist()]


def write_generation_record(
    rows: Sequence[Row], output: str, checkpoint: str, devices: Sequence[str], config: BaseModel, gallery: str
) -> None:
    """Write OUT/run.json, the sign that OUT is whole."""
    failed = sum(bool(row["error"]) for row in rows)
    record: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "checkpoint": {"folder": checkpoint, "content": rows[0]["checkpoint"]},
        "devices": list(devices),
        "versions": {package: version(package) for package in PACKAGES},
        "counts": {"prompts": len(rows), "videos": len(rows) - failed, "failed": failed},
        "seconds": seconds_by_step(),
        "gallery": gallery,
    }
    with storage.writing(storage.join(output, "run.json")) as file:
        file.write(json.dumps(record, indent=2).encode())


def check_generated(rows: Sequence[Row]) -> None:
    """Raise NothingGenerated where no row has a video."""
    errors = Counter(row["error"] for row in rows if row["error"])
    if len(rows) == errors.total():
        error, times = errors.most_common(1)[0]
        raise NothingGenerated(f"no video of {len(rows)} was made; {times} ended with: {error}")
