"""Preflight of training: before anything is started, make sure that the run can succeed, or say what is missing.

Training itself makes the same checks again where it depends on them; here they cost seconds, and no queue.
"""

import uuid
from pathlib import Path

import torch
from fsspec.core import url_to_fs

from models.checkpoint import check_keys, network_folder, stored_tensors
from models.hashed_text import POOLED_DIM, TOKEN_DIM
from models.text_to_video import files_of
from models.transformer import ContentVTransformer, TransformerConfig
from training.checkpoint.checkpoints import check_facts, last_checkpoint, read_facts
from training.data.manifest import Manifest, open_manifest
from training.data.plan import BatchPlan, Job
from training.distributed.layout import Layout
from training.distributed.weights import is_new, read_config_of
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
        config = check_start(run)
        manifest = open_manifest(run.manifests)
        plan = BatchPlan(manifest, Job(recipe=run.recipe, seed=run.seed, manifest=manifest.fingerprint))
        plan.check_ranks(layout.data_ranks)
        if run.encode.servers:
            check_servers(run, manifest.fingerprint)
        else:
            check_sources(manifest)
        check_output(run, config, manifest)
        planned = memory_plan(run, manifest, config, layout)
        samples_at_once(run, planned)
    except (ValueError, OSError) as problem:
        raise PreflightError(str(problem)) from problem
    return "\n".join([described(run, plan, layout), table(planned)])


def check_start(run: TrainingRun) -> TransformerConfig:
    """That the starting checkpoint is there, whole, and of one kind with the recipe; returns its size."""
    recipe = run.recipe
    config = read_config_of(run.checkpoint)
    if is_new(run.checkpoint):
        if recipe.codec != "lite" or recipe.text != "lite":
            raise ValueError(
                f"recipe {recipe.name} encodes with codec {recipe.codec!r} and text {recipe.text!r}, whose weights are "
                f"in a checkpoint's folder, and {run.checkpoint!r} is only a size"
            )
    else:
        root = Path(run.checkpoint)
        text = "lite" if run.encode.servers else recipe.text  # servers embed prompts; samples are decoded here
        files_of(root, recipe.codec, text)  # says what is missing
        folder = network_folder(root)
        with torch.device("meta"):
            wanted = ContentVTransformer(**vars(config)).state_dict()
        found = {name: stored.shape for name, stored in stored_tensors(folder).items()}
        check_keys(found, {name: tuple(tensor.shape) for name, tensor in wanted.items()}, f"checkpoint {folder}")
    widths = config.joint_attention_dim, config.pooled_projection_dim
    if recipe.text == "lite" and widths != (TOKEN_DIM, POOLED_DIM):
        raise ValueError(
            f"hashed words are {TOKEN_DIM} and {POOLED_DIM} wide, and checkpoint {run.checkpoint} takes text of "
            f"{widths[0]} and {widths[1]}"
        )
    return config


def check_sources(manifest: Manifest) -> None:
    """That sources of the manifest are there: some of every bucket, as all would take hours."""
    each = max(1, SOURCES_LOOKED_AT // len(manifest.rows))
    clips = [manifest.clip(int(row)) for rows in manifest.rows.values() for row in rows[:: max(1, len(rows) // each)]]
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


def check_output(run: TrainingRun, config: TransformerConfig, manifest: Manifest) -> None:
    """That the output can be written, and what is there already is of this very run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    probe = run.folder / f".probe-{uuid.uuid4().hex[:8]}"
    probe.write_bytes(b"")
    probe.unlink()
    if newest := last_checkpoint(run.folder / "checkpoints"):
        path = newest[1]
        here = facts_of(run, manifest.fingerprint) | {"model": vars(config)}
        try:
            check_facts(read_facts(path), here, path)
        except ValueError as problem:
            raise ValueError(f"{problem}\nA run goes on from its own checkpoints: choose another output") from problem


def described(run: TrainingRun, plan: BatchPlan, layout: Layout) -> str:
    """What will be trained on, in words."""
    clips = ", ".join(f"{bucket} {len(rows)}" for bucket, rows in plan.manifest.rows.items())
    lines = [
        f"{run.recipe.name}: {run.recipe.steps} steps from {run.checkpoint} on {layout.world} ranks of "
        f"{run.machine.device}, {layout.data_ranks} of data",
        f"  on this machine: {versions(run.machine.device)}",
        f"  clips: {len(plan.manifest)} ({clips})",
    ]
    if plan.unvisited:
        lines.append(f"  too few steps for all buckets; not trained on: {', '.join(map(str, plan.unvisited))}")
    return "\n".join(lines)
