"""Generate: the videos of a batch of prompts, each written whole, with how it was made in its tags (report, section 5).

A video is known by its fingerprint: a hash of its prompt, seed, settings and the bytes of the checkpoint. A file that
carries the fingerprint is not made again; so a run that was stopped, or gets more prompts, does the rest.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import pyarrow as pa
import torch
from prefect.logging import get_run_logger
from pydantic import Field

from models.sampler import Progress
from models.text_to_video import CodecName, TextName, TextToVideo
from models.video_file import GenerationMetadata, read_generation_metadata, write_video
from tasks.generation.model import Checkpoint, free_device, loaded
from tasks.generation.prompts import REQUESTS, video_name
from tasks.tables import storage
from tasks.tables.keys import key_of, root_of, shard_of
from tasks.tables.run_record import ProgressArtifact
from tasks.tables.step import Row, StepConfig, step_task

VERSION = 1

VIDEOS = pa.schema(
    [
        *REQUESTS,
        pa.field("uri", pa.string(), metadata={"meaning": "the video, relative to the output folder"}),
        pa.field("seconds", pa.float64(), metadata={"meaning": "time to make it; null: not made, or in another run"}),
        pa.field("error", pa.string(), metadata={"meaning": "why there is no video, in words; null: there is one"}),
        pa.field("fingerprint", pa.string(), metadata={"meaning": "hash of all that decides the video"}),
        pa.field("checkpoint", pa.string(), metadata={"meaning": "hash of the checkpoint's files"}),
        pa.field("config", pa.string(), metadata={"meaning": "the settings, as JSON"}),
    ]
)

# Settings that the sampler takes; the others are of loading and of the file.
SAMPLING = {"frames", "height", "width", "steps", "guidance", "shift", "negative_prompt"}


class GenerationConfig(StepConfig):
    """What decides a video besides prompt, seed and checkpoint. Defaults are those published with ContentV-8B."""

    frames: int = Field(125, gt=0, description="4k + 1; 125 are 5 seconds")
    height: int = Field(432, gt=0, description="Pixels, a multiple of 16")
    width: int = Field(768, gt=0, description="Pixels, a multiple of 16")
    fps: int = Field(24, gt=0, description="Frames per second of the file; the published model knows 24")
    steps: int = Field(50, gt=0, description="Euler steps; each is two passes through the transformer")
    guidance: float = Field(6.0, ge=0, description="Classifier-free guidance; 1 switches it off and halves the time")
    shift: float = Field(17.0, gt=0, description="Flow shift: above 1, more of the steps are near the noise")
    negative_prompt: str = Field("", description="What to guide away from; empty: from the empty prompt")
    codec: CodecName = Field("wan", description="wan: the checkpoint's VAE; lite: the weight-free codec")
    text: TextName = Field("sd3", description="sd3: the checkpoint's three encoders; lite: hashed words, no weights")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Of the transformer and the text encoders")
    decode_memory_gb: float | None = Field(
        None, gt=0, description="Decode in tiles where a frame would take more; empty: whole frames, 7.4 GB at 432x768"
    )
    crf: int = Field(18, ge=0, le=51, description="Of H.264: lower is better and larger")


class OutOfMemory(Exception):
    """A device has no room for what was asked of it; the message says what asks for less."""


def loading(config: GenerationConfig) -> dict[str, Any]:
    """The options with which the config has a checkpoint loaded."""
    memory = config.decode_memory_gb and int(config.decode_memory_gb * 1e9)
    return {
        "codec": config.codec,
        "text": config.text,
        "dtype": getattr(torch, config.dtype),
        "codec_memory": memory,
    }


def fingerprint(prompt: str, seed: int, checkpoint: Checkpoint, config: GenerationConfig) -> str:
    """A hash of all that decides a video. Where the checkpoint lies, the device and the batch do not."""
    return key_of("generate", VERSION, prompt, seed, checkpoint.content, config.model_dump(mode="json"))


def wanted_rows(table: str, checkpoint: Checkpoint, config: GenerationConfig) -> list[Row]:
    """A row for each request of a batch: where its video goes, and what it will be known by."""
    common = {"checkpoint": checkpoint.content, "config": config.model_dump_json()}
    return [
        request
        | {
            "uri": f"videos/{video_name(**request)}",
            "seconds": None,
            "error": None,
            "fingerprint": fingerprint(request["prompt"], request["seed"], checkpoint, config),
            **common,
        }
        for request in storage.read_table(table).to_pylist()
    ]


def is_made(row: Row, root: str) -> bool:
    """Whether the row's video is there and carries the row's fingerprint."""
    with suppress(FileNotFoundError, ValueError):
        found = read_generation_metadata(storage.join(root, row["uri"]))
        return bool(found.config.get("fingerprint") == row["fingerprint"])
    return False


def metadata_of(row: Row) -> GenerationMetadata:
    """The tags of a row's video."""
    config: dict[str, Any] = json.loads(row["config"])
    marks = {"checkpoint": row["checkpoint"], "fingerprint": row["fingerprint"]}
    return GenerationMetadata(row["prompt"], row["seed"], config | marks)


def make_videos(
    model: TextToVideo, rows: Sequence[Row], root: str, config: GenerationConfig, progress: Progress | None = None
) -> None:
    """Make and write the videos of ``rows``; sets ``seconds``, or ``error`` where one cannot be made.

    Where a batch fails, what it lacks is made one by one, so that only the prompt at fault is lost: samples do not
    depend on their batch. Raises OutOfMemory, and the errors of disks and devices, which are no prompt's fault.
    """
    began = time.perf_counter()
    prompts, seeds = [row["prompt"] for row in rows], [row["seed"] for row in rows]
    try:
        latents = model.sample(prompts, seeds, progress=progress, **config.model_dump(include=SAMPLING))
        share = (time.perf_counter() - began) / len(rows)
        for row, own in zip(rows, latents, strict=True):
            began = time.perf_counter()
            video = model.decode(own)
            write_video(video, storage.join(root, row["uri"]), metadata_of(row), config.fps, config.crf)
            row["seconds"] = round(share + time.perf_counter() - began, 3)
    except (ArithmeticError, LookupError, ValueError, RuntimeError, MemoryError) as problem:
        if is_out_of_memory(problem):
            raise OutOfMemory(f"{_asked(len(rows), config)}: {problem}") from problem
        if isinstance(problem, getattr(torch, "AcceleratorError", ())):
            raise
        if len(rows) == 1:
            rows[0]["error"] = f"generate: {problem}"
            return
        for row in rows:
            if row["seconds"] is None:
                make_videos(model, [row], root, config, progress)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an accelerator, or the machine itself, had no room: each says it in words of its own."""
    words = str(problem).lower()
    named = isinstance(problem, MemoryError | torch.OutOfMemoryError)
    return named or "out of memory" in words or "can't allocate memory" in words


def _asked(videos: int, config: GenerationConfig) -> str:
    size = f"{config.frames} frames of {config.width} x {config.height}"
    if videos > 1:
        return f"no memory for {videos} videos of {size} at once; set batch_size to less"
    return f"no memory for a video of {size}; ask for fewer frames or a smaller size"


@step_task("generate")
def generate_batch(table: str, checkpoint: Checkpoint, devices: list[str], config: GenerationConfig) -> str:
    """Make the videos of a batch that are not there yet; returns the URI of the table of its videos."""
    root = root_of(table)
    rows = wanted_rows(table, checkpoint, config)
    result = storage.join(
        root, "steps", "generate", f"{shard_of(table)}-{key_of([row['fingerprint'] for row in rows])}.parquet"
    )
    known = storage.read_table(result).to_pylist() if storage.exists(result) else []
    seconds = {row["fingerprint"]: row["seconds"] for row in known}
    missing = [row for row in rows if not is_made(row, root)]
    for row in rows:
        row["seconds"] = None if row in missing else seconds.get(row["fingerprint"])
    if missing:
        progress = ProgressArtifact("generation-batch", f"Steps of batch {shard_of(table)}: {len(missing)} videos")
        with free_device(devices) as device:
            model = loaded(checkpoint, device, **loading(config))
            make_videos(model, missing, root, config, progress)
    for row in missing:
        if row["error"]:
            get_run_logger().warning("%s: %s", row["uri"], row["error"])
    storage.write_table(pa.Table.from_pylist(rows, schema=VIDEOS), result)
    return result
