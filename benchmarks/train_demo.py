"""`make train-demo`: the three stages of pre-training, lite, on the manifest of `make demo`, and what they learned.

    python -m benchmarks.train_demo DEMO_FOLDER

Each stage is the flow that is deployed, with recipe lite-stage1, 2 or 3, and starts from the checkpoint of the last;
the first starts from new weights. A table then says how long each took, how its loss fell, and how near sampled videos
are to the data before and after it.

The loss is given twice: of the first and last ten steps of training, as the metrics have it; and, before and after, of
all clips of the commonest bucket at the same ten noise levels with the same noise, which is what can be compared.

Nearness is a Fréchet distance, as FID is, in a space that needs no weights: the 64 numbers of a patch of 2 x 2 latent
pixels, of all patches of all videos, as one Gaussian. Beside it stands the distance between the two halves of the data,
below which no model could be asked to come.
"""

import os
import shutil
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.demo import find_or_start_server
from models.dct_codec import DctCodec
from models.hashed_text import HashedTextEncoder
from models.text_to_video import TextToVideo
from models.transformer import patchify
from training.data.buckets import shape_of
from training.data.manifest import open_manifest
from training.data.plan import BatchPlan, Job, Sample
from training.data.selection import select
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.distributed.parallel import start
from training.distributed.prepare import prepare
from training.encode.encoder import load_encoder
from training.objectives.flow_matching import noised, squared_errors, timestep_of
from training.observe.metrics import read_metrics
from training.observe.samples import sampled_bucket
from training.recipe import Recipe, load_recipe
from training.run import RecordConfig

STAGES = ("stage1", "stage2", "stage3")
NEW = "tiny"
SEED = 0
END_LINES = 1  # of metrics, at either end of a stage, whose mean loss is compared
LEVELS = 10
SAMPLED = 8
SAMPLING = {"steps": 20, "guidance": 1.0, "shift": 1.0}
RECORD = RecordConfig(save_every=1000, sample_steps=20, sample_guidance=3.0, sample_shift=3.0)


def frechet(one: Tensor, other: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians that have the mean and covariance of the rows [n, d], [m, d]."""
    means, covariances = zip(
        *((rows.double().mean(0), torch.cov(rows.double().T)) for rows in (one, other)), strict=True
    )
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    crossed = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    return float((means[0] - means[1]).square().sum() + torch.trace(covariances[0] + covariances[1]) - 2 * crossed)


def patches(latents: Tensor) -> Tensor:
    """[B, 16, T, h, w] -> [n, 64]."""
    return patchify(latents, 2).flatten(0, 1)


def data(manifest_uri: str, recipe: Recipe) -> tuple[Tensor, list[str]]:
    """Latents [B, 16, T, h, w] and captions of the clips that sample videos have the shape of."""
    manifest = open_manifest([manifest_uri])
    rows = select(manifest, recipe).rows
    bucket = sampled_bucket(rows, recipe)
    encoder, shape = load_encoder(None, recipe), shape_of(bucket, recipe)
    samples = [Sample(0, manifest.clip(row), bucket, shape, "", 0, row) for row in rows[bucket].tolist()]
    plan = BatchPlan(manifest, Job(recipe=recipe, seed=SEED, manifest=manifest.fingerprint))
    encoded = [encoder.encode(encoder.read(sample, plan)).latents for sample in samples]
    return torch.stack(encoded), [getattr(sample.clip, recipe.caption) for sample in samples]


@torch.no_grad()
def fixed_loss(checkpoint: str, recipe: Recipe, real: Tensor, captions: list[str]) -> float:
    """The flow-matching loss of the clips, at ten noise levels that share out the logit-normal evenly."""
    model = prepare(checkpoint, MachineConfig(), start(Layout(), "cpu"), SEED).eval()
    text = HashedTextEncoder().encode(captions)
    errors = 0.0
    for number in range(LEVELS):
        quantile = torch.tensor((number + 0.5) / LEVELS)
        sigma = torch.sigmoid(torch.special.ndtri(quantile)).expand(len(real))
        noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(number))
        out = model(noised(real, noise, sigma), text.tokens, text.pooled, timestep_of(sigma))
        errors += float(squared_errors(out, noise - real).sum()) / real.numel()
    return errors / LEVELS


def sampled(checkpoint: str, recipe: Recipe, prompts: list[str], like: Tensor) -> Tensor:
    """Latents of as many videos as prompts, from a checkpoint or the new weights that training starts from."""
    model = prepare(checkpoint, MachineConfig(), start(Layout(), "cpu"), SEED).eval().requires_grad_(False)
    frames, height, width = 1 + 4 * (like.shape[2] - 1), 8 * like.shape[3], 8 * like.shape[4]
    networks = TextToVideo(model, DctCodec(), HashedTextEncoder())
    seeds = list(range(len(prompts)))
    return networks.sample(prompts, seeds, frames=frames, height=height, width=width, **SAMPLING)  # type: ignore[arg-type]


def nearness(checkpoint: str, recipe: Recipe, real: Tensor, captions: list[str]) -> float:
    prompts = [captions[i % len(captions)] for i in range(SAMPLED)]
    return frechet(patches(sampled(checkpoint, recipe, prompts, real)), patches(real))


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo").resolve()
    manifest = str(folder / "curated" / "manifest")
    if not Path(manifest).is_dir():
        print(f"there is no {manifest}: run make demo first", file=sys.stderr)
        return 1
    os.environ["PREFECT_API_URL"] = find_or_start_server(folder / "prefect-server.log")  # read when Prefect is imported
    from flows.train import train_stage1, train_stage2, train_stage3

    output = folder / "training"
    shutil.rmtree(output, ignore_errors=True)
    checkpoint, whole = NEW, 0.0
    head = ["stage", "steps", "seconds", "first loss", "last", "fell by", "fixed noise: before", "after", "fell by"]
    rows = [[*head, "distance: before", "after", "of halves"]]
    for name, flow in zip(STAGES, (train_stage1, train_stage2, train_stage3), strict=True):
        recipe = load_recipe(f"lite-{name}")
        began = time.perf_counter()
        result = flow([manifest], checkpoint, str(output / name), recipe=recipe.name, seed=SEED, record=RECORD)
        took = time.perf_counter() - began
        losses = [line["loss"] for line in read_metrics(output / name / "metrics.jsonl")]
        first, last = sum(losses[:END_LINES]) / END_LINES, sum(losses[-END_LINES:]) / END_LINES
        real, captions = data(manifest, recipe)
        halves = frechet(patches(real[::2]), patches(real[1::2]))
        fixed = [fixed_loss(each, recipe, real, captions) for each in (checkpoint, result)]
        near = [nearness(each, recipe, real, captions) for each in (checkpoint, result)]
        row = [name, str(recipe.steps), f"{took:.0f}"]
        for before, after in ((first, last), fixed):
            row += [f"{before:.3f}", f"{after:.3f}", f"{1 - after / before:.0%}"]
        rows.append([*row, *(f"{number:.1f}" for number in (*near, halves))])
        checkpoint, whole = result, whole + took
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"{whole:.0f} s in all; sample videos: {output}/stage*/samples")
    return 0


if __name__ == "__main__":
    sys.exit(main())
