"""Preflight: before any work, make sure that the run can succeed, or say what is missing and what brings it."""

from dataclasses import dataclass
from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from models.scoring.weights import missing
from tasks.curation.filter import OwnFilter, declared
from tasks.curation.inputs import Inputs, inputs_of
from tasks.curation.scores import SCORES
from tasks.curation.verdict import limits
from tasks.tables.checks import PreflightError
from tasks.tables.schema import RESERVED
from tasks.tables.step import StepConfig

# What the manifest's folders are called after, and what a reader of the dataset gets as columns.
PARTITIONS = ("aspect", "duration")


def check_profile(profile: str) -> None:
    """Raise PreflightError where the networks of ``profile`` are not there."""
    if profile != "lite":
        raise PreflightError(
            f"profile {profile!r} is not part of this release: its networks (PaddleOCR's server models, GMFlow, CLIP "
            "with the LAION head, Qwen2.5-VL) come next. Run with profile 'lite'."
        )


def check_weights(config: StepConfig) -> None:
    """Raise PreflightError with all weights that the chosen scorers need and that are not there, each with what brings
    it."""
    chosen = [(score, getattr(config, score.name)) for score in SCORES]
    names = [name for score, own in chosen for name in score.checkpoints.get(score.scorer_name(own), ())]
    if lacks := missing(names):
        raise PreflightError("\n".join([f"{len(lacks)} checkpoints are missing:", *lacks]))


def check_filters(thresholds: StepConfig) -> list[OwnFilter]:
    """The user's own filters, each once. PreflightError: one cannot be had, two write one column, or a limit is on a
    column that its filter does not have."""
    try:
        own = [OwnFilter.of(name) for name in dict.fromkeys(limit.filter for limit in thresholds.filters)]  # type: ignore[attr-defined]
        limits(thresholds, own)
    except ValueError as problem:
        raise PreflightError(str(problem)) from problem
    return own


@dataclass(frozen=True)
class Plan:
    """What a run will do: what it starts from, and the user's own filters."""

    inputs: Inputs
    filters: list[OwnFilter]

    @property
    def shards(self) -> list[str]:
        return self.inputs.shards

    @property
    def passthrough(self) -> list[str | None]:
        """For each shard the table of what an input list brings, if there is one."""
        return list(self.inputs.passthrough) or [None] * len(self.inputs.shards)


def prepare(
    source: str,
    output: str,
    profile: str,
    sources_per_shard: int,
    thresholds: StepConfig,
    samples_per_s: float,
    limit: int | None = None,
    sample: str | float | None = None,
) -> Plan:
    """Check profile, filters, inputs and output; returns the run's plan. Raises PreflightError."""
    check_profile(profile)
    own = check_filters(thresholds)
    measured = {column.name for score in [*SCORES, *declared(own)] for column in score.columns}
    taken = {*RESERVED, *measured, *PARTITIONS}
    return Plan(inputs_of(source, output, sources_per_shard, samples_per_s, limit, sample, taken), own)


@task(name="preflight", task_run_name="preflight", cache_policy=NO_CACHE, persist_result=False)
def preflight(
    source: str,
    output: str,
    profile: Literal["lite", "paper"],
    sources_per_shard: int,
    thresholds: StepConfig,
    samples_per_s: float,
    limit: int | None = None,
    sample: str | float | None = None,
) -> Plan:
    """``prepare``, with its notes in the log of the run."""
    plan = prepare(source, output, profile, sources_per_shard, thresholds, samples_per_s, limit, sample)
    for note in plan.inputs.notes:
        get_run_logger().info(note)
    return plan
