"""Generation (report, section 5.1): from prompts to videos, with a gallery of what was made.

    preflight - generate (a batch a task) - gallery

Each device works on one batch at a time. A video that is already there, made from the same, is not made again.
"""

from typing import Annotated

from prefect import flow
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.task_runners import results, tasks_run_on
from tasks.generation.generate import GenerationConfig, generate_batch
from tasks.generation.preflight import PromptSource, Takes, generation_preflight
from tasks.generation.prompts import Caption
from tasks.generation.record import check_generated, rows_of, write_generation_record
from tasks.pages.gallery import gallery
from tasks.tables.run_record import ProgressArtifact

Count = Annotated[int, Field(gt=0)]


@flow(name="generate", flow_run_name="generate {output}")
def generate(
    checkpoint: str,
    output: str,
    prompts: list[str] | None = None,
    prompts_from: str | None = None,
    caption: Caption = "caption_detailed",
    limit: Count | None = None,
    seed: int = 0,
    videos_per_prompt: Count = 1,
    batch_size: Count = 1,
    devices: list[str] | None = None,
    config: GenerationConfig = GenerationConfig(),
) -> str:
    """Make a video of every prompt with a ContentV checkpoint; returns the URI of the gallery.

    Args:
        checkpoint: Folder in the diffusers layout: transformer/, vae/, text_encoder*/, tokenizer*/.
        output: Folder or bucket for videos/, videos.parquet, gallery.html and run.json. Videos are found again there.
        prompts: Texts, one a video.
        prompts_from: Instead of prompts: a .txt, .jsonl, .csv or .parquet file, or the manifest of curate-videos.
        caption: Which caption of a manifest is the prompt.
        limit: Take at most so many prompts.
        seed: Of prompts that bring none; each further video of a prompt takes the next one.
        videos_per_prompt: How many videos of each prompt.
        batch_size: Videos made at once on a device, as far as its memory goes.
        devices: Such as cuda:0, npu:0, cpu; empty: every accelerator of this machine, or its CPU if it has none.
        config: Size, sampling, and which parts of the checkpoint to use.
    """
    source = PromptSource(prompts, prompts_from, caption, limit)
    takes = Takes(seed, videos_per_prompt, batch_size)
    plan = generation_preflight(checkpoint, output, source, takes, devices, config)
    progress = ProgressArtifact("generation-progress", "Batches of videos made")
    with tasks_run_on(ThreadPoolTaskRunner(max_workers=len(plan.devices))):
        made = [generate_batch.submit(batch, plan.checkpoint, plan.devices, config) for batch in plan.batches]
        for done, batch in enumerate(as_completed(made), start=1):
            batch.result()  # what ends one batch would end them all: stop at the first
            progress(done, len(made))
        page = gallery.submit(made, config)
        *tables, written = results([*made, page])
    rows = rows_of(tables)
    write_generation_record(rows, output, plan.checkpoint.folder, plan.devices, config, gallery=written)
    check_generated(rows)
    return str(written)
