"""Curation (report, section 3): from raw videos and images to the manifest that training reads.

    scan - embed - dedup sources - cut - dedup clips - text - overlays - blur - motion - aesthetics - verdict
         - caption - buckets - clips - manifest - report

Each step is one file in tasks/curation/. Between the two barriers (dedup sources, manifest) every shard goes its own
way: a step takes the list of its shard's tables, and returns it with one more. A run of which shards failed ends with
what it has, in the state "Failed in part".
"""

import time
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.states import Failed, State
from pydantic import Field

from flows.progress import Progress
from flows.shards import Shards
from flows.task_runners import Runner, task_runner, tasks_run_on
from tasks.curation.buckets import buckets
from tasks.curation.caption import caption
from tasks.curation.clips import clips
from tasks.curation.cut import cut
from tasks.curation.dedup_clips import dedup_clips
from tasks.curation.dedup_sources import dedup_sources
from tasks.curation.embed import embed
from tasks.curation.forget_errors import forget_errors
from tasks.curation.inputs import estimate_of
from tasks.curation.manifest import manifest
from tasks.curation.measure import measure, on_accelerator, pieces
from tasks.curation.preflight import check_weights, preflight
from tasks.curation.scan import scan
from tasks.curation.settings import CurationConfig
from tasks.curation.verdict import limits, verdict
from tasks.pages.report import report
from tasks.tables.lock import holding
from tasks.tables.run_record import check_kept, failed_in_part, write_run_record
from tasks.tables.tally import shard_size

Count = Annotated[int, Field(gt=0)]


@flow(name="curate-videos", flow_run_name="curate {source}")
def curate_videos(
    source: str,
    output: str,
    profile: Literal["lite", "paper"] = "lite",
    runner: Runner = "threads",
    ray_address: str | None = None,
    sources_per_shard: int = 64,
    config: CurationConfig = CurationConfig(),
    limit: Count | None = None,
    sample: str | float | None = None,
    retry_errors: bool = False,
) -> str | State[Any]:
    """Curate the videos and images under ``source`` into ``output``; returns the URI of the manifest.

    Args:
        source: Folder, bucket or file, as a path or URI.
        output: Folder or bucket for clips/, manifest/, report.html and run.json. Kept results are found again there.
        profile: `lite` needs no downloads and no accelerator; `paper` runs the report's own networks.
        runner: Where tasks run: threads of this process, processes of this machine, or a Ray cluster.
        ray_address: Address of the Ray cluster, as ray://host:port; empty: RAY_ADDRESS, or a new local one.
        sources_per_shard: About how many sources a task works on.
        config: One group of settings per step; the thresholds are in `verdict`.
        limit: Take at most so many of the sources, drawn by hashes of their names: a smaller part lies in a larger one.
        sample: Take such a part of the sources, as 1% or 0.01. The end says what all of them would take.
        retry_errors: Make again what ended in an error in earlier runs: what they kept of it is removed first.
    """
    began = time.monotonic()
    on = task_runner(runner, ray_address)
    check_weights(config)
    plan = preflight(
        source, output, profile, sources_per_shard, config.verdict, config.scan.samples_per_s, limit, sample
    )
    allowed = limits(config.verdict, plan.filters)
    measured = pieces(config, plan.filters)
    with holding(output) as hold, Progress(len(measured)) as progress, tasks_run_on(on):
        if retry_errors:
            forget_errors(output)
        shards = Shards(plan.shards, [shard_size(listed) for listed in plan.shards], watch=progress)
        scanned = shards.run(scan, plan.shards, config=config.scan)
        embedded = shards.run(embed, scanned)
        listed, passed, scanned, embedded = shards.ended(plan.shards, plan.passthrough, scanned, embedded)
        unique = shards.run_whole(dedup_sources, scanned, embedded, config.dedup_sources).result()
        tables = shards.run(cut, [list(shard) for shard in zip(scanned, unique, strict=True)], config=config.cut)
        tables = shards.run(dedup_clips, tables, config=config.dedup_clips)
        for names in measured:
            wants = on_accelerator(names, config, plan.filters)
            tables = shards.run(measure, tables, names=names, config=config, own=plan.filters, accelerator=wants)
        tables = shards.run(verdict, tables, config=config.verdict, own=plan.filters)
        tables = shards.run(caption, tables)
        tables = shards.run(buckets, tables)
        wide = shards.run(clips, tables, passed, own=plan.filters)
        listed, embedded, used, finals = shards.ended(listed, embedded, tables, wide)
        hold.check()
        dataset, page = shards.run_whole(manifest, finals), shards.run_whole(report, finals, allowed)
        folder, written = dataset.result(), page.result()
        results = [*listed, *embedded, *(table for shard in used for table in shard), *finals]
        whole = estimate_of(plan.inputs, time.monotonic() - began, output)
        stages = write_run_record(output, finals, results, config, allowed, written, shards.failures, whole)
    if shards.failures:
        problem = failed_in_part(shards.failures)
        return Failed(name="Failed in part", message=str(problem), data=problem)
    check_kept(stages)
    return str(folder)
