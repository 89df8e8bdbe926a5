"""Preflight: before any work, make sure that the run can succeed, or say what is missing and what brings it."""

import shutil
from dataclasses import dataclass
from typing import Literal

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.curation.filter import OwnFilter, declared
from tasks.tables.sources import PreflightError, check_writable, find_sources, write_shards
from tasks.tables.step import StepConfig

# A frame store takes a few per cent of an ordinary source; below this a run would end in "no space left".
FREE_FRACTION = 0.1


def check_space(root: str, source_bytes: int) -> None:
    """Raise PreflightError where a local disk clearly cannot hold the frame stores of so many bytes of video."""
    fs, path = url_to_fs(root)
    if not isinstance(fs, LocalFileSystem):
        return
    free = shutil.disk_usage(path).free
    wanted = int(FREE_FRACTION * source_bytes)
    if free < wanted:
        raise PreflightError(
            f"output {root!r} has {free / 2**30:.1f} GiB free; the frame stores of these sources need about "
            f"{wanted / 2**30:.1f} GiB"
        )


def check_profile(profile: str) -> None:
    """Raise PreflightError where the networks of ``profile`` are not there."""
    if profile != "lite":
        raise PreflightError(
            f"profile {profile!r} is not part of this release: its networks (PaddleOCR's server models, GMFlow, CLIP "
            "with the LAION head, Qwen2.5-VL) come next. Run with profile 'lite'."
        )


@dataclass(frozen=True)
class Plan:
    """What a run will do: the URIs of its shards' lists of sources, and the user's own filters."""

    shards: list[str]
    filters: list[OwnFilter]


def check_filters(thresholds: StepConfig) -> list[OwnFilter]:
    """The user's own filters, each once. PreflightError: one cannot be had, or two write one column."""
    try:
        own = [OwnFilter.of(name) for name in dict.fromkeys(limit.filter for limit in thresholds.filters)]  # type: ignore[attr-defined]
        declared(own)
    except ValueError as problem:
        raise PreflightError(str(problem)) from problem
    return own


@task(name="preflight", task_run_name="preflight", cache_policy=NO_CACHE, persist_result=False)
def preflight(
    source: str, output: str, profile: Literal["lite", "paper"], sources_per_shard: int, thresholds: StepConfig
) -> Plan:
    """Check inputs, output, profile and filters; returns the run's plan."""
    check_profile(profile)
    own = check_filters(thresholds)
    sources = find_sources(source)
    check_writable(output)
    check_space(output, sum(int(found["bytes"]) for found in sources))
    shards = write_shards(sources, output, sources_per_shard)
    get_run_logger().info("%d sources in %d shards", len(sources), len(shards))
    return Plan(shards, own)
