"""Curation (report, section 3): from raw videos and images to the manifest that training reads.

    scan - embed - dedup sources - cut - dedup clips - text - overlays - blur - motion - aesthetics - verdict
         - caption - buckets - clips - manifest - report

Each step is one file in tasks/curation/. Between the two barriers (dedup sources, manifest) every shard goes its own
way: a step takes the list of its shard's tables, and returns it with one more.
"""

from typing import Any, Literal

from prefect import flow

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
from tasks.curation.manifest import manifest
from tasks.curation.measure import measure, pieces
from tasks.curation.preflight import preflight
from tasks.curation.scan import scan
from tasks.curation.settings import CurationConfig
from tasks.curation.verdict import limits, verdict
from tasks.pages.report import report
from tasks.tables.run_record import check_kept, failed_in_part, write_run_record


@flow(name="curate-videos", flow_run_name="curate {source}")
def curate_videos(
    source: str,
    output: str,
    profile: Literal["lite", "paper"] = "lite",
    runner: Runner = "threads",
    ray_address: str | None = None,
    sources_per_shard: int = 64,
    config: CurationConfig = CurationConfig(),
) -> str:
    """Curate the videos and images under ``source`` into ``output``; returns the URI of the manifest.

    Args:
        source: Folder, bucket or file, as a path or URI.
        output: Folder or bucket for clips/, manifest/, report.html and run.json. Kept results are found again there.
        profile: `lite` needs no downloads and no accelerator; `paper` runs the report's own networks.
        runner: Where tasks run: threads of this process, processes of this machine, or a Ray cluster.
        ray_address: Address of the Ray cluster, as ray://host:port; empty: RAY_ADDRESS, or a new local one.
        sources_per_shard: About how many sources a task works on.
        config: One group of settings per step; the thresholds are in `verdict`.
    """
    plan = preflight(source, output, profile, sources_per_shard, config.verdict)
    allowed = limits(config.verdict, plan.filters)
    shards = Shards(plan.shards, watch=Progress())
    with tasks_run_on(task_runner(runner, ray_address)):
        scanned = shards.run(scan, plan.shards, config=config.scan)
        embedded = shards.run(embed, scanned)
        listed, scanned, embedded = shards.ended(plan.shards, scanned, embedded)
        unique = dedup_sources.submit(scanned, embedded, config.dedup_sources).result()
        tables = shards.run(cut, [list(shard) for shard in zip(scanned, unique, strict=True)], config=config.cut)
        tables = shards.run(dedup_clips, tables, config=config.dedup_clips)
        for names in pieces(config, plan.filters):
            tables = shards.run(measure, tables, names=names, config=config, own=plan.filters)
        tables = shards.run(verdict, tables, config=config.verdict, own=plan.filters)
        tables = shards.run(caption, tables)
        tables = shards.run(buckets, tables)
        finals: list[Any] = shards.run(clips, tables, listed, own=plan.filters)
        listed, embedded, used, finals = shards.ended(listed, embedded, tables, finals)
        dataset, page = manifest.submit(finals), report.submit(finals, allowed)
        folder, written = dataset.result(), page.result()
    results = [*listed, *embedded, *(table for shard in used for table in shard), *finals]
    check_kept(write_run_record(output, finals, results, config, allowed, written, shards.failures))
    if shards.failures:
        raise failed_in_part(shards.failures)
    return str(folder)
