"""Curation (report, section 3): from raw videos and images to the manifest that training reads.

    scan - embed - dedup sources - cut - dedup clips - text - overlays - blur - motion - aesthetics - verdict
         - caption - buckets - manifest - report

Each step is one file in tasks/. Between the two barriers (dedup sources, manifest) every shard goes its own way.
"""

from typing import Literal

from prefect import flow
from prefect.futures import PrefectFuture, as_completed
from pydantic import Field

from flows.task_runners import Runner, results, task_runner, tasks_run_on
from tasks.curation.aesthetics import AestheticsConfig, aesthetics
from tasks.curation.blur import BlurConfig, blur
from tasks.curation.buckets import buckets
from tasks.curation.caption import caption
from tasks.curation.cut import CutConfig, cut
from tasks.curation.dedup_clips import DedupClipsConfig, dedup_clips
from tasks.curation.dedup_sources import DedupSourcesConfig, dedup_sources
from tasks.curation.embed import embed
from tasks.curation.filter import apply_filter
from tasks.curation.manifest import manifest
from tasks.curation.motion import MotionConfig, motion
from tasks.curation.overlays import OverlayConfig, overlays
from tasks.curation.preflight import preflight
from tasks.curation.scan import ScanConfig, scan
from tasks.curation.text import TextConfig, text
from tasks.curation.verdict import VerdictConfig, limits, verdict
from tasks.pages.report import report
from tasks.tables.run_record import ProgressArtifact, check_kept, write_run_record
from tasks.tables.step import StepConfig


class CurationConfig(StepConfig):
    """How each step measures, and in ``verdict`` what is kept. Changing a step's part re-runs it and what follows."""

    verdict: VerdictConfig = Field(VerdictConfig(), description="Thresholds: a change here measures nothing again")
    scan: ScanConfig = ScanConfig()
    dedup_sources: DedupSourcesConfig = DedupSourcesConfig()
    cut: CutConfig = CutConfig()
    dedup_clips: DedupClipsConfig = DedupClipsConfig()
    text: TextConfig = TextConfig()
    overlays: OverlayConfig = OverlayConfig()
    blur: BlurConfig = BlurConfig()
    motion: MotionConfig = MotionConfig()
    aesthetics: AestheticsConfig = AestheticsConfig()


def curate_shard(table: str, unique: PrefectFuture[list[str]], config: CurationConfig) -> list[PrefectFuture[str]]:
    """Submit the steps that need nothing but their own shard; returns their futures, in order."""
    steps = [cut.submit(table, config.cut, wait_for=[unique])]
    steps.append(dedup_clips.submit(steps[-1], config.dedup_clips))
    steps.append(text.submit(steps[-1], config.text))
    steps.append(overlays.submit(steps[-1], config.overlays))
    steps.append(blur.submit(steps[-1], config.blur))
    steps.append(motion.submit(steps[-1], config.motion))
    steps.append(aesthetics.submit(steps[-1], config.aesthetics))
    for own in config.verdict.filters:
        steps.append(apply_filter.submit(steps[-1], own.filter))
    steps.append(verdict.submit(steps[-1], config.verdict))
    steps.append(caption.submit(steps[-1]))
    steps.append(buckets.submit(steps[-1]))
    return steps


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
    shards = preflight(source, output, profile, sources_per_shard, config.verdict)
    progress = ProgressArtifact("curation-progress", "Shards curated", every_s=0)
    with tasks_run_on(task_runner(runner, ray_address)):
        scanned = [scan.submit(shard, config.scan) for shard in shards]
        embedded = [embed.submit(table) for table in scanned]
        unique = dedup_sources.submit(embedded, config.dedup_sources)
        deduplicated = results([*scanned, *embedded, unique])[-1]
        curated = [curate_shard(table, unique, config) for table in deduplicated]
        finals = [steps[-1] for steps in curated]
        for done, _ in enumerate(as_completed(finals), start=1):
            progress(done, len(shards))
        results([step for steps in curated for step in steps])
        dataset = manifest.submit(finals)
        page = report.submit(finals, limits(config.verdict), wait_for=[dataset])
        *tables, folder, written = results([*finals, dataset, page])
    check_kept(write_run_record(tables, output, shards, config, limits(config.verdict), report=written))
    return str(folder)
