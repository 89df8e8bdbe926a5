"""What a run leaves besides its data: progress while it works, and OUT/run.json when it is done."""

import json
import time
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any
from uuid import UUID

from fsspec.core import url_to_fs
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.runtime import flow_run
from pydantic import BaseModel

from tasks.curation.verdict import Limit
from tasks.tables import storage
from tasks.tables.funnel import Stage, funnel, worst
from tasks.tables.step import key_of

PACKAGES = (
    "contentv",
    "av",
    "faiss-cpu",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "prefect",
    "pyarrow",
    "rapidocr",
    "scenedetect",
)
PAGE = 200


class NothingKept(Exception):
    """The run ended well and keeps no clip; the message says which test rejected most."""


class ProgressArtifact:
    """The share of work that is done, as an artifact of the flow or task run; told at most every ``every_s``."""

    def __init__(self, key: str, description: str, every_s: float = 1.0) -> None:
        made = create_progress_artifact(0.0, key=key, description=description)
        self._artifact = made if isinstance(made, UUID) else None
        self._every_s, self._told = every_s, time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        now = time.monotonic()
        if self._artifact and (done == of or now - self._told >= self._every_s):
            update_progress_artifact(self._artifact, 100 * done / of)
            self._told = now


def remove_record(output: str) -> None:
    """Remove OUT/run.json: until it is written again, OUT is not whole."""
    fs, record = url_to_fs(storage.join(output, "run.json"))
    if fs.exists(record):
        fs.rm(record)


def seconds_by_step() -> dict[str, float]:
    """Seconds that each step's tasks of the present run took, added up over shards."""
    seconds: dict[str, float] = {}
    with get_client(sync_client=True) as client:
        this_run = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run.id)]))
        offset = 0
        while runs := client.read_task_runs(flow_run_filter=this_run, limit=PAGE, offset=offset):
            for run in runs:
                step = run.name.split(" ·")[0]
                seconds[step] = seconds.get(step, 0.0) + run.total_run_time.total_seconds()
            offset += PAGE
    return {step: round(spent, 3) for step, spent in sorted(seconds.items(), key=lambda item: -item[1])}


def write_run_record(
    tables: Sequence[str], output: str, shards: Sequence[str], config: BaseModel, allowed: Sequence[Limit], report: str
) -> list[Stage]:
    """Write OUT/run.json, the sign that OUT is whole; returns the funnel that is in it."""
    stages = funnel(tables, [limit.reason for limit in allowed])
    record: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "inputs": key_of(sorted(shards)),
        "versions": {package: version(package) for package in PACKAGES},
        "counts": [stage.as_dict() for stage in stages],
        "seconds": seconds_by_step(),
        "report": report,
    }
    with storage.writing(storage.join(output, "run.json")) as file:
        file.write(json.dumps(record, indent=2).encode())
    return stages


def counts(record: dict[str, Any]) -> list[Stage]:
    """The funnel in a run record, as ``write_run_record`` wrote it."""
    return [Stage(**{field.name: stage[field.name] for field in fields(Stage)}) for stage in record["counts"]]


def check_kept(stages: Sequence[Stage]) -> None:
    """Raise NothingKept where the funnel keeps no clip."""
    if not stages[-1].left:
        most = worst(stages)
        because = f"; {most.reason!r} rejected most: {most.lost} of {most.entered} {most.unit}" if most else ""
        raise NothingKept(f"no clip is kept{because}")
