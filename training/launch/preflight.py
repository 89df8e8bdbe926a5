"""Preflight of training: before anything is started, make sure that the run can succeed, or say what is missing.

Training itself makes the same checks again where it depends on them; here they cost seconds, and no queue.
"""

import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from media.lock import check_free
from models.hashed_text import POOLED_DIM, TOKEN_DIM
from models.text_to_video import files_of
from models.transformer import ContentVTransformer
from training.checkpoint import identity
from training.checkpoint.checkpoints import last_checkpoint
from training.checkpoint.identity import branch_record, starting_weights
from training.data import census
from training.data.manifest import open_manifest
from training.data.plan import BatchPlan, Job
from training.distributed.layout import Layout
from training.distributed.prepare import on_meta, prepare
from training.distributed.weights import is_new
from training.encode.encoder import encoder_fingerprint
from training.encode.status import check_servers
from training.launch.versions import versions
from training.memory.micro_batch import memory_plan, samples_at_once
from training.memory.planner import table
from training.run import TrainingRun, facts_of

SOURCES_LOOKED_AT = 64


class PreflightError(ValueError):
    """The run cannot succeed; the message says what is missing and what brings it."""


def preflight(run: TrainingRun, processes: int) -> str:
    """Check recipe, data, checkpoint, output, devices and memory; returns the plan as text.

    PreflightError: the run cannot succeed as it is.
    """
    try:
        layout = Layout(processes, run.machine.shard, run.machine.sequence)
        model = check_start(run, layout)
        manifest = open_manifest(run.manifests)
        plan = BatchPlan(manifest, Job(recipe=run.recipe, seed=run.seed, manifest=manifest.fingerprint))
        plan.check_ranks(layout.data_ranks)
        if run.encode.servers:
            encoder = check_servers(run, manifest.fingerprint)
        else:
            check_sources(plan)
            encoder = encoder_fingerprint(run.checkpoint, run.recipe, run.machine.device)
        weights = starting_weights(run.checkpoint)
        check_output(run, facts_of(run, manifest.fingerprint, weights, encoder) | {"model": asdict(model.config)})
        planned = memory_plan(run, manifest, model, layout)
        samples_at_once(run, planned)
    except (ValueError, OSError) as problem:
        raise PreflightError(str(problem)) from problem
    return "\n".join([described(run, plan, layout), table(planned)])


def check_start(run: TrainingRun, layout: Layout) -> ContentVTransformer:
    """That the starting checkpoint is there, whole, and of one kind with the recipe; returns its model of shapes."""
    recipe = run.recipe
    model = prepare(run.checkpoint, run.machine, on_meta(layout), run.seed)
    if is_new(run.checkpoint):
        if recipe.codec != "lite" or recipe.text != "lite":
            raise ValueError(
                f"recipe {recipe.name} encodes with codec {recipe.codec!r} and text {recipe.text!r}, whose weights are "
                f"in a checkpoint's folder, and {run.checkpoint!r} is only a size"
            )
    else:
        text = "lite" if run.encode.servers else recipe.text  # servers embed prompts; samples are decoded here
        files_of(Path(run.checkpoint), recipe.codec, text)  # says what is missing
    widths = model.config.joint_attention_dim, model.config.pooled_projection_dim
    if recipe.text == "lite" and widths != (TOKEN_DIM, POOLED_DIM):
        raise ValueError(
            f"hashed words are {TOKEN_DIM} and {POOLED_DIM} wide, and checkpoint {run.checkpoint} takes text of "
            f"{widths[0]} and {widths[1]}"
        )
    return model


def check_sources(plan: BatchPlan) -> None:
    """That sources of what is trained on are there: some of every bucket, as all would take hours."""
    each = max(1, SOURCES_LOOKED_AT // len(plan.rows))
    looked_at = [int(row) for rows in plan.rows.values() for row in rows[:: max(1, len(rows) // each)]]
    clips = [plan.manifest.clip(row) for row in looked_at]
    missing = []
    for uri in dict.fromkeys(clip.source_uri for clip in clips):
        fs, path = url_to_fs(uri)
        if not fs.exists(path):
            missing.append(uri)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(clips)} sources that were looked at are not there, first {missing[0]}; "
            "a manifest names its sources as curation saw them"
        )


def check_output(run: TrainingRun, facts: dict[str, Any]) -> None:
    """That the output can be written, no other run is writing there, and what is there is of this very run."""
    check_free(str(run.folder))
    run.folder.mkdir(parents=True, exist_ok=True)
    probe = run.folder / f".probe-{uuid.uuid4().hex[:8]}"
    probe.write_bytes(b"")
    probe.unlink()
    identity.check_output(run.folder, facts)
    if run.branch_from and not last_checkpoint(run.folder / "checkpoints"):
        branch_record(run.branch_from, facts)


def described(run: TrainingRun, plan: BatchPlan, layout: Layout) -> str:
    """What will be trained on, in words."""
    head = (
        f"{run.recipe.name}: {run.recipe.steps} steps from {run.checkpoint} on {layout.world} ranks of "
        f"{run.machine.device}, {layout.data_ranks} of data"
    )
    return f"{head}\n  on this machine: {versions(run.machine.device)}\n{census.described(plan)}"
