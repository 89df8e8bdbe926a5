"""Preflight: before any work, make sure that the run can succeed, or say what is missing and what brings it."""

from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.curation.inputs import Inputs, inputs_of
from tasks.curation.verdict import VerdictConfig, limits
from tasks.tables.checks import PreflightError
from tasks.tables.schema import COLUMNS

# What the manifest's folders are called after, and what a reader of the dataset gets as columns.
PARTITIONS = ("aspect", "duration")


def check_profile(profile: str) -> None:
    """Raise PreflightError where the networks of ``profile`` are not there."""
    if profile != "lite":
        raise PreflightError(
            f"profile {profile!r} is not part of this release: its networks (PaddleOCR's server models, GMFlow, CLIP "
            "with the LAION head, Qwen2.5-VL) come next. Run with profile 'lite'."
        )


def prepare(
    source: str,
    output: str,
    profile: str,
    sources_per_shard: int,
    thresholds: VerdictConfig,
    samples_per_s: float,
    limit: int | None = None,
    sample: str | float | None = None,
) -> Inputs:
    """Check profile, filters, inputs and output; returns what the run starts from. Raises PreflightError."""
    check_profile(profile)
    try:
        limits(thresholds)
    except ValueError as problem:
        raise PreflightError(str(problem)) from problem
    ours = {name for columns in COLUMNS.values() for name, *_ in columns}
    return inputs_of(source, output, sources_per_shard, samples_per_s, limit, sample, {*ours, *PARTITIONS})


@task(name="preflight", task_run_name="preflight", cache_policy=NO_CACHE, persist_result=False)
def preflight(
    source: str, output: str, profile: Literal["lite", "paper"], sources_per_shard: int, thresholds: VerdictConfig
) -> list[str]:
    """``prepare`` for a run over all sources; returns the URIs of the shards' lists of sources."""
    inputs = prepare(source, output, profile, sources_per_shard, thresholds, samples_per_s=2.0)
    for note in inputs.notes:
        get_run_logger().info(note)
    return inputs.shards
