"""A manifest of small real files, as curation writes it: videos of a moving square in three buckets, and two images."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from models.video_file import GenerationMetadata, write_video
from training.data.manifest import SCHEMA
from training.recipe import Recipe
from training.run import RecordConfig, TrainingRun

FPS = 24
HEIGHT, WIDTH = 48, 80
# aspect ratio, whole seconds, seconds of each clip
CLIPS = [("16x9", 1, [0.75, 1.0, 1.2]), ("16x9", 2, [1.6, 2.0]), ("9x16", 1, [1.0, 0.9])]


def small_recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "small",
        "frames": 9,
        "height": 32,
        "width": 32,
        "image_batch": 4,
        "video_batch": 4,
        "bucket_run": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "codec": "lite",
        "text": "lite",
        "phases": [{"data": "videos", "steps": 6}, {"data": "balanced", "steps": 6}],
    }
    return Recipe.model_validate(fields | changes)


def small_run(manifest: str, output: Path, **changes: Any) -> TrainingRun:
    fields: dict[str, Any] = {
        "recipe": small_recipe(),
        "manifests": (manifest,),
        "checkpoint": "tiny",
        "output": str(output),
        "record": RecordConfig(log_every=1, save_every=3, sample_steps=2, sample_count=1),
    }
    return TrainingRun.model_validate(fields | changes)


def moving_square(frames: int, height: int, width: int, seed: int) -> torch.Tensor:
    """[3, frames, height, width] in [-1, 1]: a square that moves, in a colour of its own, over a gradient."""
    random = np.random.default_rng(seed)
    video = torch.linspace(-0.6, 0.2, width).repeat(3, frames, height, 1)
    colour = torch.tensor(random.uniform(-1, 1, 3), dtype=torch.float32)
    top = int(random.integers(0, height - 12))
    for frame in range(frames):
        left = (seed * 7 + frame) % (width - 12)
        video[:, frame, top : top + 12, left : left + 12] = colour[:, None, None]
    return video


def write_data(folder: Path) -> str:
    """Write files and manifest below ``folder``; returns the manifest's path."""
    rows = []
    for aspect, seconds, durations in CLIPS:
        for duration in durations:
            number = len(rows)
            size = (HEIGHT, WIDTH) if aspect == "16x9" else (WIDTH, HEIGHT)
            path = folder / f"{number}.mp4"
            video = moving_square(round(duration * FPS), *size, number)
            write_video(video, str(path), GenerationMetadata("", 0), FPS)
            rows.append(row(number, path, size, aspect, seconds, duration))
    for number in range(len(rows), len(rows) + 2):
        path = folder / f"{number}.png"
        frame = (moving_square(1, HEIGHT, WIDTH, number)[:, 0] + 1) * 127.5
        Image.fromarray(frame.permute(1, 2, 0).round().to(torch.uint8).numpy()).save(path)
        rows.append(row(number, path, (HEIGHT, WIDTH), "16x9", 0, 0.0))
    write_manifest(rows, folder / "manifest")
    return str(folder / "manifest")


def row(number: int, path: Path, size: tuple[int, int], aspect: str, seconds: int, duration: float) -> dict[str, Any]:
    height, width = size
    return {
        "clip_id": f"clip-{number}",
        "source_uri": str(path),
        "start_s": 0.0,
        "end_s": duration,
        "width": width,
        "height": height,
        "crop_x": 0,
        "crop_y": 0,
        "crop_w": width,
        "crop_h": height,
        "caption_short": f"square {number}",
        "caption_detailed": f"a square number {number} that moves",
        "bucket_aspect": aspect,
        "bucket_duration_s": seconds,
        "source_id": "",
        "source_bytes": 0,
    }


def write_manifest(rows: list[dict[str, Any]], folder: Path, schema: pa.Schema = SCHEMA) -> None:
    """As ``tasks/curation/manifest.py`` does: one file a bucket."""
    for aspect, seconds in sorted({(one["bucket_aspect"], one["bucket_duration_s"]) for one in rows}):
        own = [one for one in rows if (one["bucket_aspect"], one["bucket_duration_s"]) == (aspect, seconds)]
        part = folder / f"aspect={aspect}" / f"duration={seconds}"
        part.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(own, schema=schema), part / "part-00000.parquet")
