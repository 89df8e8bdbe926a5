"""What a step of our loop takes, beside the bare model and beside a plain loop around the stock one.

    python -m benchmarks.training_step [--size tiny wide] [--device cpu] [--repeats 15]

Three steps with the same weights, the same batch and the same optimiser, one after the other, again and again; the
medians of their ratios are printed, and the quartiles.

- ours: ``training.loop.train``: plan, assembly, noise, model, clipping, AdamW, averaged weights, metrics with their
  lines every ten steps, lineage. Only encoding is left out: the batch is there.
- bare: forward, backward and AdamW's step of the same model on the same tensors, and nothing else.
- plain: what a training script does around diffusers' SD3Transformer2DModel, given an image of as many tokens: noise,
  forward, backward, ``clip_grad_norm_``, AdamW, ``EMAModel``.

With ``--peak-tflops`` of the device the model FLOPs utilisation of our step is printed too.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from benchmarks.transformer import SIZES, Size, keep_freed_memory, models
from models.flops import forward_flops
from models.position import Grid
from models.transformer import ContentVTransformer
from training.checkpoint.checkpoints import State
from training.checkpoint.ema import Ema
from training.data.buckets import Shape
from training.data.manifest import SCHEMA, open_manifest
from training.data.plan import BatchPlan, Job
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.distributed.parallel import Parallel, start, stop
from training.distributed.prepare import apply_machine
from training.encode.encoder import Encoded
from training.loader import Loader, assemble
from training.loop import train
from training.memory.measured import PeakMemory, held_bytes
from training.memory.step import Setup
from training.objectives.flow_matching import timestep_of
from training.observe.metrics import Metrics
from training.observe.observer import Observer
from training.recipe import Recipe
from training.run import TrainingRun

LINE_EVERY = 10  # steps, the recipes' default
CLIPS = 64


@dataclass(frozen=True)
class Case:
    """A model, and the aspect ratio and shape of the videos that it is trained on."""

    size: Size
    aspect: str
    shape: Shape


WIDE = replace(SIZES["tiny"].config, num_attention_heads=6, attention_head_dim=64)
CASES = {  # batches as in the lite recipes
    "tiny": Case(replace(SIZES["tiny"], batch=8), "16x9", Shape(13, 144, 256)),
    "wide": Case(Size(WIDE, Grid(2, 12, 12), Grid(1, 16, 18), text_tokens=77, batch=8), "1x1", Shape(5, 192, 192)),
}


class InMemory:
    """A feed whose batches were encoded before."""

    def __init__(self, plan: BatchPlan, size: Size, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(0)
        c = size.config
        self._plan = plan
        self._latents = torch.randn(16, *shape.latent, generator=generator)
        self._tokens = torch.randn(size.text_tokens, c.joint_attention_dim, generator=generator)
        self._pooled = torch.randn(c.pooled_projection_dim, generator=generator)

    def batch(self, step: int) -> list[Encoded]:
        text = self._tokens, self._pooled
        return [Encoded(s.index, s.clip.clip_id, self._latents, *text) for s in self._plan.samples(step)]

    def close(self) -> None:
        pass


def plan_of(case: Case, folder: Path, steps: int) -> BatchPlan:
    """A plan over clips of one bucket, whose files nobody opens."""
    numbers = {"start_s": 0.0, "end_s": 2.0, "bucket_aspect": case.aspect, "bucket_duration_s": 2}
    numbers |= dict.fromkeys(("width", "height", "crop_w", "crop_h"), 100) | {"crop_x": 0, "crop_y": 0}
    texts = {"source_uri": "none.mp4", "caption_short": "a cat", "caption_detailed": "a cat that sits"}
    rows = [numbers | texts | {"clip_id": f"clip-{n}"} for n in range(CLIPS)]
    (folder / "manifest").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "manifest" / "part.parquet")
    manifest = open_manifest([str(folder / "manifest")], folder)
    shape, batch = case.shape, case.size.batch
    recipe = Recipe.model_validate(
        {
            "name": "benchmark",
            "frames": shape.frames,
            "height": shape.height,
            "width": shape.width,
            "video_batch": batch,
            "bucket_run": batch,
            "learning_rate": 1e-5,
            "warmup_steps": 1,
            "phases": [{"data": "videos", "steps": steps}],
        }
    )
    plan = BatchPlan(manifest, Job(recipe=recipe, seed=0, manifest=manifest.fingerprint))
    assert plan.samples(0)[0].shape == shape
    return plan


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def our_step(
    model: ContentVTransformer, plan: BatchPlan, feed: InMemory, parallel: Parallel, folder: Path
) -> Callable[[int], None]:
    recipe = plan.job.recipe
    state = State(model, Ema(model, recipe.ema_decay), optimizer_of(model))
    memory = PeakMemory(Setup(model.config, parallel.layout), held_bytes(parallel.device), parallel.device)
    metrics = Metrics(parallel, model.config, list(plan.manifest.rows), None, memory)
    at_once = {recipe.frames: recipe.bucket_run}
    run = TrainingRun(recipe=recipe, manifests=(), checkpoint="tiny", output=str(folder))
    observer = Lines(run, metrics, 0, None, save=lambda *_: None, sample=lambda _: None)

    def step(number: int) -> None:
        loader = Loader(plan, feed, parallel, at_once, range(number, number + 1))
        train(state, loader, parallel, recipe, observer, lambda: False)

    return step


class Lines(Observer):
    """Lines of metrics as often as a run has them, and no checkpoints."""

    def after(self, step: int, last: bool) -> None:
        if step % LINE_EVERY == 0:
            self._metrics.line(step, self._recipe.steps, self._recipe.learning_rate)


def bare_step(model: ContentVTransformer, plan: BatchPlan, feed: InMemory, parallel: Parallel) -> Callable[[int], None]:
    batch = assemble(plan.samples(0), feed.batch(0), plan, parallel, last=True)
    optimizer = optimizer_of(model)
    inputs = batch.latents, batch.tokens, batch.pooled, timestep_of(batch.sigma).to(parallel.device)

    def step(number: int) -> None:
        F.mse_loss(model(*inputs).float(), batch.noise).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_step(model: nn.Module, size: Size, feed: InMemory, device: torch.device, half: bool) -> Callable[[int], None]:
    """As training scripts do, on images of as many tokens as the videos have."""
    encoded = feed.batch(0)
    stacked = [torch.stack([getattr(e, name) for e in encoded]).to(device) for name in ("latents", "tokens", "pooled")]
    patch = size.config.patch_size
    image = stacked[0].reshape(len(encoded), 16, size.image.height * patch, size.image.width * patch)
    optimizer, average = optimizer_of(model), EMAModel(model.parameters(), decay=0.999)

    def step(number: int) -> None:
        noise = torch.randn(image.shape).to(device)
        sigma = torch.sigmoid(torch.randn(len(image))).to(device)
        noisy: Tensor = (1 - sigma.view(-1, 1, 1, 1)) * image + sigma.view(-1, 1, 1, 1) * noise
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            out = model(noisy, stacked[1], stacked[2], 1000 * sigma, return_dict=False)[0]
        loss = F.mse_loss(out.float(), noise - image)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        if number % LINE_EVERY == 0:
            loss.item()

    return step


def seconds(step: Callable[[int], None], number: int, device: torch.device) -> float:
    _synchronise(device)
    began = time.perf_counter()
    step(number)
    _synchronise(device)
    return time.perf_counter() - began


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "npu"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--peak-tflops", type=float)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    if options.device == "cpu":
        keep_freed_memory()
    for name in options.size:
        case = CASES[name]
        parallel = start(Layout(), options.device)
        with tempfile.TemporaryDirectory() as folder:
            plan = plan_of(case, Path(folder), options.repeats + 2)
            feed = InMemory(plan, case.size, case.shape)
            ours, stock = models(case.size.config, options.device, torch.float32)
            bare = ContentVTransformer(**vars(case.size.config))
            bare.load_state_dict(ours.state_dict())
            for model in (ours, bare):
                apply_machine(model.requires_grad_(), MachineConfig(dtype=options.dtype), parallel)
            steps = {
                "ours": our_step(ours, plan, feed, parallel, Path(folder)),
                "bare": bare_step(bare, plan, feed, parallel),
                "plain": plain_step(stock.requires_grad_(), case.size, feed, parallel.device, dtype != torch.float32),
            }
            times: dict[str, list[float]] = {kind: [] for kind in steps}
            for number in range(options.repeats + 2):
                order = list(steps)[number % 3 :] + list(steps)[: number % 3]
                for kind in order:
                    times[kind].append(seconds(steps[kind], number, parallel.device))
        times = {kind: each[2:] for kind, each in times.items()}  # the first warm up
        c, size = case.size.config, case.size
        print(
            f"{name}: {c.num_layers} layers, {c.num_attention_heads} x {c.attention_head_dim}, batch {size.batch} of "
            f"{case.shape}, {size.video.tokens} video and {size.text_tokens} text tokens, {options.dtype}"
        )
        for other in ("bare", "plain"):
            ratios = [a / b for a, b in zip(times["ours"], times[other], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            milliseconds = statistics.median(times[other]) * 1e3
            print(f"  ours / {other:5}  {middle:.3f} ({low:.3f} to {high:.3f}) of {milliseconds:.1f} ms", flush=True)
        if options.peak_tflops:
            work = size.batch * forward_flops(c, size.video.tokens, size.text_tokens).training()
            print(f"  MFU {work / statistics.median(times['ours']) / options.peak_tflops / 1e12:.1%}")
        stop(parallel)


if __name__ == "__main__":
    main()
