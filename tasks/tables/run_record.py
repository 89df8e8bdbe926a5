"""What a run leaves besides its data: progress while it works, and OUT/run.json when it is done."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.runtime import flow_run
from pydantic import BaseModel

from tasks.tables import storage
from tasks.tables.funnel import Stage, funnel, worst
from tasks.tables.keys import key_in, key_of, step_of
from tasks.tables.limit import Limit
from tasks.tables.step import side_by_side

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
    storage.remove(storage.join(output, "run.json"))


def seconds_by_step(tables: Sequence[str] = ()) -> dict[str, float]:
    """Seconds that each step took in the present run, added up over shards: wall time of its tasks; of scores that are
    measured together, the CPU time of each that was measured in this run or an earlier one, as its ``tables`` say."""
    seconds: dict[str, float] = {}
    with get_client(sync_client=True) as client:
        this_run = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run.id)]))
        offset = 0
        while runs := client.read_task_runs(flow_run_filter=this_run, limit=PAGE, offset=offset):
            for run in runs:
                step = run.name.split(" ·")[0]
                seconds[step] = seconds.get(step, 0.0) + run.total_run_time.total_seconds()
            offset += PAGE
    for table, notes in zip(tables, side_by_side(storage.read_notes, tables), strict=True):
        if spent := notes.get("seconds"):
            seconds[step_of(table)] = seconds.get(step_of(table), 0.0) + float(spent)
    return {step: round(spent, 3) for step, spent in sorted(seconds.items(), key=lambda item: -item[1])}


@dataclass(frozen=True)
class Failure:
    """A shard that failed for good, and at which step."""

    shard: str
    step: str
    words: str


class FailedInPart(Exception):
    """The run ended with what it has; the message names the shards that failed."""


def failed_in_part(failures: Sequence[Failure]) -> FailedInPart:
    named = "; ".join(f"{failure.shard} at {failure.step}: {failure.words}" for failure in failures[:5])
    more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
    return FailedInPart(f"{len(failures)} shards failed, the others are whole: {named}{more}. Run the same again")


def write_run_record(
    output: str,
    finals: Sequence[str],
    tables: Sequence[str],
    config: BaseModel,
    allowed: Sequence[Limit],
    report: str,
    failures: Sequence[Failure] = (),
    estimate: str | None = None,
) -> list[Stage]:
    """Write OUT/run.json, the sign that OUT is whole; returns the funnel that is in it.

    ``finals`` are the wide tables of the shards, ``tables`` all tables that the run read or wrote: they are listed in
    OUT/steps/used.json, for whoever removes what is no longer used. ``estimate`` says of a run over a part of the
    sources what all of them would take.
    """
    stages = funnel(finals, [limit.reason for limit in allowed])
    relative = sorted(table.removeprefix(output.rstrip("/") + "/") for table in tables)
    frames = sorted({uri for found in side_by_side(_frames, finals) for uri in found})
    used = {"tables": relative, "frames": frames, "whole": not failures}
    storage.write_json(used, storage.join(output, "steps", "used.json"))
    record: dict[str, Any] = {
        "status": "failed in part" if failures else "complete",
        "failed": [asdict(failure) for failure in failures],
        "config": config.model_dump(mode="json"),
        "inputs": key_of(sorted(key_in(table) for table in tables if step_of(table) == "sources")),
        "versions": {package: version(package) for package in PACKAGES},
        "counts": [stage.as_dict() for stage in stages],
        "seconds": seconds_by_step(tables),
        "report": report,
    }
    if estimate:
        record["estimate"] = estimate
    storage.write_json(record, storage.join(output, "run.json"), indent=2)
    return stages


def _frames(table: str) -> list[str]:
    return [uri for uri in storage.read_table(table, ["frames_uri"])["frames_uri"].unique().to_pylist() if uri]


def counts(record: dict[str, Any]) -> list[Stage]:
    """The funnel in a run record, as ``write_run_record`` wrote it."""
    return [Stage(**{field.name: stage[field.name] for field in fields(Stage)}) for stage in record["counts"]]


def check_kept(stages: Sequence[Stage]) -> None:
    """Raise NothingKept where the funnel keeps no clip."""
    if not stages[-1].left:
        most = worst(stages)
        because = f"; {most.reason!r} rejected most: {most.lost} of {most.entered} {most.unit}" if most else ""
        raise NothingKept(f"no clip is kept{because}")
