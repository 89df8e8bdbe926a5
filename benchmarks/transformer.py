"""The transformer against the stock one: our time and peak memory divided by those of diffusers' SD3Transformer2DModel.

    python -m benchmarks.transformer [--size tiny full-width] [--device cpu] [--repeats 15] [--where-time-goes]

Both have the same weights and get as many tokens: ours a video, the stock an image of the same number of patches.
Repeats are interleaved, so that whatever else the machine does falls on both; the median of their ratios is printed,
and the quartiles. On the CPU the process keeps the memory that it freed, as the allocators of accelerators do. Else a
quarter of a step at full width is the kernel clearing fresh pages, at a speed that varies twofold.

Peak memory is what was allocated at once beyond what was before, which is weights, inputs and gradients: on the CPU as
PyTorch's allocator reports it to the profiler, every scratch buffer of every operator included; on an accelerator as
its caching allocator counts it.
"""

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from models.checkpoint import read_config
from models.position import Grid
from models.transformer import ContentVTransformer, TransformerConfig, set_attention

Step = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """A model and the tokens that it is measured with; ``image`` has as many patches as ``video``."""

    config: TransformerConfig
    video: Grid
    image: Grid
    text_tokens: int = 333
    batch: int = 1

    def __post_init__(self) -> None:
        if self.video.tokens != self.image.tokens:
            raise ValueError(f"{self.video.tokens} video tokens against {self.image.tokens} of the image")


SIZES = {
    "tiny": Size(read_config("tiny"), Grid(4, 9, 16), Grid(1, 24, 24), batch=2),
    "full-width": Size(replace(read_config("8b"), num_layers=4), Grid(2, 12, 12), Grid(1, 16, 18), text_tokens=77),
}


def models(
    config: TransformerConfig, device: str, dtype: torch.dtype
) -> tuple[ContentVTransformer, SD3Transformer2DModel]:
    """Ours and the stock model, with the same random weights."""
    torch.manual_seed(0)
    stock = SD3Transformer2DModel(
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        caption_projection_dim=config.inner_dim,
        joint_attention_dim=config.joint_attention_dim,
        pooled_projection_dim=config.pooled_projection_dim,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
    ).to(device, dtype)
    with torch.device("meta"):
        ours = ContentVTransformer(**vars(config))
    weights = {key: tensor for key, tensor in stock.state_dict().items() if key != "pos_embed.pos_embed"}
    ours.load_state_dict(weights, assign=True)
    return ours, stock


def inputs(size: Size, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """What both models are called with, ``hidden_states`` as our video."""
    generator = torch.Generator().manual_seed(0)
    c, patch = size.config, size.config.patch_size
    t, h, w = size.video
    shapes = {
        "hidden_states": (size.batch, c.in_channels, t, h * patch, w * patch),
        "encoder_hidden_states": (size.batch, size.text_tokens, c.joint_attention_dim),
        "pooled_projections": (size.batch, c.pooled_projection_dim),
    }
    tensors = {name: torch.randn(shape, generator=generator).to(device, dtype) for name, shape in shapes.items()}
    return tensors | {"timestep": torch.rand(size.batch, generator=generator).to(device) * 1000}


def steps(size: Size, device: str, dtype: torch.dtype, attention: str = "sdpa") -> dict[str, tuple[Step, Step]]:
    """What is measured: for each kind, ours and the stock model's."""
    ours, stock = models(size.config, device, dtype)
    set_attention(ours, attention)
    video = inputs(size, device, dtype)
    patch = size.config.patch_size
    shape = size.batch, size.config.in_channels, size.image.height * patch, size.image.width * patch
    image = video | {"hidden_states": video["hidden_states"].reshape(shape)}

    def forward(model: torch.nn.Module, tensors: dict[str, Tensor], **options: Any) -> Step:
        def step() -> None:
            with torch.no_grad():
                model(**tensors, **options)

        return step

    def train(model: torch.nn.Module, tensors: dict[str, Tensor], **options: Any) -> Step:
        def step() -> None:
            out = model(**tensors, **options)
            out = out[0] if isinstance(out, tuple) else out
            out.square().mean().backward()  # adds to the gradients: as large as the weights, they are not measured

        model.requires_grad_()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return step

    return {
        "forward": (forward(ours, video), forward(stock, image, return_dict=False)),
        "forward+backward": (train(ours, video), train(stock, image, return_dict=False)),
    }


def seconds(step: Step, device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    step()
    _synchronise(device)
    return time.perf_counter() - start


def pair(ours: Step, stock: Step, device: str, swap: bool) -> tuple[float, float]:
    """Seconds of each, one after the other; ``swap`` runs the stock model first, so that neither has the best place."""
    if swap:
        theirs = seconds(stock, device)
        return seconds(ours, device), theirs
    return seconds(ours, device), seconds(stock, device)


def keep_freed_memory() -> None:
    """Have glibc never return memory to the system."""
    m_trim_threshold, m_mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1)):
        raise RuntimeError("glibc's mallopt refused; without it, times on this machine are noise")


def _synchronise(device: str) -> None:
    if device != "cpu":
        getattr(torch, device).synchronize()


def peak_bytes(step: Step, device: str = "cpu") -> int:
    """The most bytes that were allocated at once during ``step``, beyond those before it."""
    gc.collect()
    if device != "cpu":
        memory = getattr(torch, device)
        memory.reset_peak_memory_stats()
        before = memory.memory_allocated()
        step()
        return memory.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--device", default="cpu", help="cpu, cuda or npu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--where-time-goes", action="store_true", help="also print the operators of our step by time")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    if options.device == "cpu":
        keep_freed_memory()
    for name in options.size:
        size = SIZES[name]
        c = size.config
        print(
            f"{name}: {c.num_layers} layers, {c.num_attention_heads} x {c.attention_head_dim}, batch {size.batch}, "
            f"{size.video.tokens} video and {size.text_tokens} text tokens, {options.dtype} on {options.device}"
        )
        for kind, (ours, stock) in steps(size, options.device, dtype, options.attention).items():
            memory = [peak_bytes(step, options.device) for step in (ours, stock)]  # warms both up
            times = [pair(ours, stock, options.device, swap=bool(i % 2)) for i in range(options.repeats)]
            low, middle, high = statistics.quantiles((a / b for a, b in times), n=4)
            print(
                f"  {kind:17} time {middle:.3f} ({low:.3f} to {high:.3f}) "
                f"of {statistics.median(b for _, b in times) * 1e3:.1f} ms   "
                f"memory {memory[0] / memory[1]:.3f} of {memory[1] / 2**20:.1f} MiB",
                flush=True,
            )
            if options.where_time_goes:
                with profile() as profiler:
                    ours()
                print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


if __name__ == "__main__":
    main()
