"""Preflight of generation: before any work, make sure that the run can succeed, or say what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from models.codec import latent_shape
from models.text_to_video import check_checkpoint
from tasks.generation.generate import GenerationConfig
from tasks.generation.model import Checkpoint
from tasks.generation.prompts import Caption, Prompt, read_prompts, requests, write_batches
from tasks.tables import storage
from tasks.tables.checks import PreflightError, check_writable
from tasks.tables.keys import key_of
from tasks.tables.step import side_by_side


@dataclass(frozen=True)
class Plan:
    """What a run is to do: the URIs of its batches of requests, with which checkpoint, on which devices."""

    batches: list[str]
    checkpoint: Checkpoint
    devices: list[str]


@dataclass(frozen=True)
class PromptSource:
    """Where prompts come from: typed in, or a file or manifest, of which ``caption`` is taken; at most ``limit``."""

    prompts: Sequence[str] | None = None
    prompts_from: str | None = None
    caption: Caption = "caption_detailed"
    limit: int | None = None


@dataclass(frozen=True)
class Takes:
    """How many videos of each prompt, from which seed on where it brings none, and how many are made at once."""

    seed: int = 0
    videos_per_prompt: int = 1
    batch_size: int = 1


def find_checkpoint(folder: str, config: GenerationConfig) -> Checkpoint:
    """Find the checkpoint whole, and hash all of it that will be read. PreflightError names what is missing."""
    root = Path(folder).resolve()
    try:
        files = check_checkpoint(root, config.codec, config.text)
    except (FileNotFoundError, ValueError) as problem:
        raise PreflightError(str(problem)) from problem
    hashes = side_by_side(lambda file: (str(file.relative_to(root)), storage.content_hash(str(file))), files)
    return Checkpoint(str(root), key_of(list(hashes)))


def check_devices(names: Sequence[str] | None) -> list[str]:
    """The devices to work on: those named, or every accelerator of this machine, or its CPU.

    PreflightError where one that is named cannot be used.
    """
    if not names:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return [f"{accelerator.type}:{n}" for n in range(torch.accelerator.device_count())] if accelerator else ["cpu"]
    for name in names:
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as problem:  # AssertionError: torch was built without that device
            raise PreflightError(f"device {name!r} cannot be used: {str(problem).splitlines()[0]}") from problem
    return list(dict.fromkeys(names))


def find_prompts(source: PromptSource) -> list[Prompt]:
    """The prompts that were typed in, or those of the file; PreflightError unless it is exactly one of the two."""
    typed = [Prompt(prompt.strip()) for prompt in source.prompts or [] if prompt.strip()]
    if bool(typed) == bool(source.prompts_from):
        raise PreflightError("give either 'prompts' (texts) or 'prompts_from' (a file or a manifest), and not both")
    if source.prompts_from:
        return read_prompts(source.prompts_from, source.caption, source.limit)
    return typed[: source.limit]


@task(name="preflight", task_run_name="preflight", cache_policy=NO_CACHE, persist_result=False)
def generation_preflight(
    checkpoint: str,
    output: str,
    source: PromptSource,
    takes: Takes,
    devices: list[str] | None,
    config: GenerationConfig,
) -> Plan:
    """Check prompts, shapes, devices, output and checkpoint, in the order of what they cost."""
    try:
        wanted = requests(find_prompts(source), takes.seed, takes.videos_per_prompt)
        latent_shape(config.frames, config.height, config.width)
    except ValueError as problem:
        raise PreflightError(str(problem)) from problem
    usable = check_devices(devices)
    check_writable(output)
    found = find_checkpoint(checkpoint, config)
    get_run_logger().info("%d videos on %s", len(wanted), ", ".join(usable))
    return Plan(write_batches(wanted, output, takes.batch_size), found, usable)
