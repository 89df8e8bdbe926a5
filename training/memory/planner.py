"""What a stage takes before it is launched: memory, tokens and operations of every bucket, and how long it will last.

    python -m training.memory.planner stage3 --memory-gb 64 --world 256 --shard 8 --sequence 8 --recompute full --all
    python -m training.memory.planner all --memory-gb 64 --world 256 --shard 8 --sequence 8 --peak-tflops 320 --mfu 0.45

A launch that cannot fit is refused here, with what would fit, instead of after hours in a queue. A device's GB are
10^9 bytes; GiB are 2^30.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

from models.checkpoint import read_config
from models.flops import parameters
from training.data.buckets import Bucket
from training.distributed.layout import Layout
from training.memory.plan import (
    GB,
    GIB,
    BucketPlan,
    DoesNotFit,
    MemoryPlan,
    batch_of,
    check,
    plan_memory,
    samples_of_rank,
    setting,
)
from training.memory.step import DTYPES, MODES, Setup, reserve
from training.recipe import load_recipe

PAPER_RECIPES = ("vae-adaptation", "stage1", "stage2", "stage3")
TERA, DAY_S = 1e12, 86_400


def seconds_of_step(planned: MemoryPlan, bucket: BucketPlan, peak_tflops: float, mfu: float) -> float:
    """How long a step of such samples takes: all that is done of it, what is computed again included.

    Args:
        mfu: the share of their peak at which the devices work, whatever they work on.
    """
    batch = batch_of(planned.recipe, bucket.bucket)
    return batch * bucket.training_flops / (planned.setup.layout.world * peak_tflops * TERA * mfu)


def days(planned: MemoryPlan, peak_tflops: float, mfu: float, clips: Mapping[Bucket, int] | None = None) -> float:
    """How long the recipe takes. Each bucket has its share of the steps, as its clips are of all of its kind.

    Args:
        clips: of each bucket, as in a manifest's ``rows``; by default all buckets have as many.
    """
    total = 0.0
    for phase in planned.recipe.phases:
        kinds = {"images": [0], "videos": [1], "balanced": [0, 1]}[phase.data]
        for kind in kinds:
            same = [each for each in planned.buckets if bool(each.bucket.duration_s) == bool(kind)]
            weights = [1 if clips is None else clips.get(each.bucket, 0) for each in same]
            seconds = sum(
                weight * seconds_of_step(planned, each, peak_tflops, mfu)
                for weight, each in zip(weights, same, strict=True)
            )
            total += phase.steps / len(kinds) * seconds / sum(weights)
    return total / DAY_S


def table(planned: MemoryPlan, every: bool = False, peak_tflops: float | None = None, mfu: float | None = None) -> str:
    """The plan as text: the costliest bucket of each duration, or every bucket."""
    setup, layout, memory = planned.setup, planned.setup.layout, planned.memory_bytes
    kept_free = reserve(setup, memory)
    held = planned.state
    parts = {
        "weights": held.weights,
        "gradients": held.gradients,
        "moments": held.moments,
        "average": held.average,
        "gathered weights": planned.gathered_bytes,
        "reserve": kept_free,
        "other": planned.other_bytes,
        "for activations": memory - held.total - planned.gathered_bytes - kept_free - planned.other_bytes,
    }
    rows = [["bucket", "shape", "tokens", "on a rank", "forward TF", "training TF", "with again TF", "GiB a sample"]]
    rows[0] += ["at once", "peak GiB", "samples a rank", "parts"]
    timed = peak_tflops is not None and mfu is not None
    rows[0] += ["s a step"] if timed else []
    for each in planned.buckets if every else planned.costliest:
        at_once = planned.micro_batch(each.shape)
        samples = samples_of_rank(each.bucket, planned.recipe, layout)
        flops = [each.forward_flops, each.model_flops, each.training_flops]
        row = [str(each.bucket), str(each.shape), f"{each.tokens:,}", f"{each.rank_tokens:,}"]
        row += [f"{value / TERA:,.2f}" for value in flops]
        row += [f"{each.sample_bytes / GIB:.2f}", str(at_once or "NONE"), f"{each.peak_bytes / GIB:.1f}"]
        run = planned.recipe.run("videos" if each.bucket.duration_s else "images")
        row += [str(samples), str(parts_of_step(samples, run, at_once) or "-")]
        if peak_tflops is not None and mfu is not None:
            row.append(f"{seconds_of_step(planned, each, peak_tflops, mfu):.2f}")
        rows.append(row)
    lines = [
        f"{planned.recipe.name}: {parameters(setup.config):,} parameters on devices of {memory / GB:g} GB "
        f"({memory / GIB:.1f} GiB), {setting(setup)}",
        "  GiB on a rank: " + ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items() if value),
        *_aligned(rows),
        *_steps(planned),
    ]
    if peak_tflops is not None and mfu is not None:
        lines.append(
            f"  {days(planned, peak_tflops, mfu):.1f} days at {mfu:.0%} of {peak_tflops:g} TFLOPS, "
            f"with as many clips in each bucket"
        )
    return "\n".join(lines)


def parts_of_step(samples: int, run: int, at_once: int) -> int:
    """The most micro-batches that a data rank makes of a step's samples, in runs from one bucket; 0: it cannot.

    Runs of equal shape go together, so there may be fewer.
    """
    run = min(run, samples)
    return samples // run * -(-run // at_once) if at_once else 0


def _steps(planned: MemoryPlan) -> Iterator[str]:
    """What a step is, of images and of videos: of videos the costliest."""
    for kind, same in (("images", False), ("videos", True)):
        found = [each for each in planned.costliest if bool(each.bucket.duration_s) == same]
        if found:
            most = max(found, key=lambda each: each.tokens)
            batch = batch_of(planned.recipe, most.bucket)
            tokens, flops = batch * most.tokens, batch * most.model_flops
            yield (
                f"  a step of {batch} {kind} ({most.bucket}): {tokens / 1e6:,.1f} M tokens, {flops / 1e15:,.1f} PFLOP, "
                f"{flops / planned.setup.layout.world / TERA:,.0f} TFLOP a rank"
            )


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help='a name ("stage2"), a file, or "all" of the report')
    parser.add_argument("--memory-gb", type=float, required=True, help="of a device, 10^9 bytes")
    parser.add_argument("--world", type=int, default=1, help="devices")
    parser.add_argument("--shard", type=int, default=1, help="ranks that hold one copy of model and optimiser")
    parser.add_argument("--sequence", type=int, default=1, help="ranks that share a sample's tokens")
    parser.add_argument("--config", default="8b", help="8b, tiny, or a checkpoint's folder")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--recompute", choices=MODES, default="none")
    parser.add_argument("--recompute-every", type=int, default=1, help="of so many blocks one is computed again")
    parser.add_argument("--device", choices=["cpu", "cuda", "npu"], default="npu")
    parser.add_argument("--other-gb", type=float, default=0.0, help="of a device's memory that something else takes")
    parser.add_argument("--peak-tflops", type=float, help="of a device, for the time; with --mfu")
    parser.add_argument("--mfu", type=float, help="share of the peak at which devices work")
    parser.add_argument("--all", action="store_true", help="every bucket, not the costliest of each duration")
    options = parser.parse_args(arguments)
    if (options.peak_tflops is None) != (options.mfu is None):
        parser.error("the time takes both --peak-tflops and --mfu")
    names = PAPER_RECIPES if options.recipe == "all" else (options.recipe,)
    status, total = 0, 0.0
    try:
        config = read_config(options.config)
        layout = Layout(options.world, options.shard, options.sequence)
        recipes = [load_recipe(name) for name in names]
    except (FileNotFoundError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 2
    for recipe in recipes:
        memory, other = options.memory_gb * GB, int(options.other_gb * GB)
        try:
            setup = Setup(
                config,
                layout,
                options.dtype,
                options.recompute,
                options.device,
                recompute_every=options.recompute_every,
            )
            planned = plan_memory(recipe, setup, memory, other_bytes=other)
        except ValueError as problem:
            print(f"recipe {recipe.name}: {problem}", file=sys.stderr)
            return 2
        print(table(planned, options.all, options.peak_tflops, options.mfu), end="\n\n", flush=True)
        if options.mfu is not None:
            total += days(planned, options.peak_tflops, options.mfu)
        try:
            check(planned)
        except DoesNotFit as problem:
            print(f"{problem}\n", file=sys.stderr, flush=True)
            status = 1
    if options.mfu is not None and len(recipes) > 1:
        print(f"{total:.1f} days in all")
    return status


if __name__ == "__main__":
    sys.exit(main())
