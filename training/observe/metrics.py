"""What a run tells of itself: a line of numbers each logging interval.

Sums stay on the device from step to step; only ``line`` waits for it and talks to the other ranks. So a step costs no
synchronisation, and a number that is not finite is found at the next line, with the step it came from.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from models.flops import forward_flops
from models.transformer import TransformerConfig
from training.data.buckets import Bucket, Shape
from training.data.plan import values
from training.distributed.parallel import Parallel
from training.memory.measured import PeakMemory

BANDS = 10  # of the noise level, even in sigma
TERA = 1e12


class NotFinite(ArithmeticError):
    """The gradient of a step was no number; says which step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the gradient of step {step} is not finite")
        self.step = step


class Metrics:
    """The sums of one logging interval, of this rank.

    Args:
        buckets: all that may come, in an order that all ranks share.
        peak_tflops: of a device, for MFU; None: no MFU.
        memory: this rank's peak beside its plan, which goes into the lines too.
    """

    def __init__(
        self,
        parallel: Parallel,
        config: TransformerConfig,
        buckets: Sequence[Bucket],
        peak_tflops: float | None,
        memory: PeakMemory | None = None,
    ) -> None:
        self._parallel, self._config, self._peak, self._memory = parallel, config, peak_tflops, memory
        self._places = {bucket: BANDS + i for i, bucket in enumerate(buckets)}
        self._names = [f"{i / BANDS:.1f}-{(i + 1) / BANDS:.1f}" for i in range(BANDS)] + [str(b) for b in buckets]
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=parallel.device)
        self._waited = 0.0
        self.start()

    def start(self) -> None:
        """Begin an interval."""
        device, slots = self._parallel.device, len(self._names)
        self._errors = torch.zeros(slots, device=device)  # by band and by bucket
        self._values = torch.zeros(slots, dtype=torch.float64)
        self._loss = torch.zeros((), device=device)
        self._norm = torch.zeros((), device=device)
        self._cut_t5 = self._cut_clip = 0
        self._steps = self._samples = self._bad_clips = self._tokens = self._flops = 0
        self._waited_before = self._waited
        self._apart = 0.0
        self._began = time.perf_counter()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leave time and memory in here out of those of the steps: they go to checkpoints and sample videos."""
        began = time.perf_counter()
        yield
        self._apart += time.perf_counter() - began
        if self._memory:
            self._memory.reset()

    def add(self, buckets: Sequence[Bucket], shape: Shape, sigma: Tensor, text_tokens: int, errors: Tensor) -> None:
        """Add a micro-batch.

        Args:
            buckets: of each of its B samples; ``shape`` is of all.
            sigma: noise levels [B], on the CPU.
            errors: [B], each sample's summed squared error over this rank's tokens, on the device.
        """
        samples = len(sigma)
        if self._memory:
            self._memory.micro_batch(samples, shape.tokens, text_tokens)
        bands = (sigma * BANDS).long().clamp(max=BANDS - 1)
        slots = torch.cat([bands, torch.tensor([self._places[bucket] for bucket in buckets])])
        self._errors.index_add_(0, slots.to(errors.device, non_blocking=True), errors.detach().repeat(2))
        if self._parallel.leader:  # of the whole sample, once
            self._values.index_add_(0, slots, torch.full((2 * samples,), float(values(shape)), dtype=torch.float64))
            self._samples += samples
            self._tokens += samples * shape.tokens
            self._flops += samples * forward_flops(self._config, shape.tokens, text_tokens).training()

    def add_bad(self, clips: int) -> None:
        """Add clips that could not be read, on the rank that brings the batch."""
        self._bad_clips += clips

    def add_cut(self, t5: int, clip: int) -> None:
        """Add captions with tokens beyond T5's window, and beyond CLIP's, on the rank that brings the batch."""
        self._cut_t5 += t5
        self._cut_clip += clip

    def end_step(self, step: int, loss: Tensor, norm: Tensor, waited_s: float) -> None:
        """Add a step.

        Args:
            loss: this rank's part of that of step number ``step``.
            norm: of the gradient of all ranks.
            waited_s: for which this rank has waited for data in all steps so far.
        """
        self._waited = waited_s
        self._loss += loss
        self._norm += norm
        bad = (self._bad_step < 0) & ~norm.isfinite()
        self._bad_step = torch.where(bad, torch.full_like(self._bad_step, step), self._bad_step)
        self._steps += 1

    def check(self) -> None:
        """NotFinite, on all ranks, if a step so far had a gradient that is no number. Waits for the device."""
        if (step := int(self._bad_step)) >= 0:
            raise NotFinite(step)

    def line(self, step: int, steps: int, learning_rate: float) -> dict[str, Any]:
        """The interval's numbers over all ranks, after ``step`` of ``steps``; the next interval begins.

        All ranks call it. NotFinite if a gradient was no number.
        """
        self.check()
        waited_s = self._waited - self._waited_before
        count = torch.tensor(
            [self._samples, self._bad_clips, self._cut_t5, self._cut_clip, self._tokens, self._flops / TERA, waited_s],
            dtype=torch.float64,
        )
        device = self._parallel.device
        sums = torch.cat([self._errors, self._loss[None], self._values.float().to(device), count.float().to(device)])
        sums = self._parallel.total(sums).cpu().double()  # not every device has float64
        slots, layout = len(self._names), self._parallel.layout
        errors, loss, counted, (samples, bad, t5, clip, tokens, tera, waited) = sums.split([slots, 1, slots, 7])
        seconds = time.perf_counter() - self._began - self._apart
        means = {name: float(e / v) for name, e, v in zip(self._names, errors, counted, strict=True) if v}
        bands = set(self._names[:BANDS])
        line = {
            "step": step,
            "steps": steps,
            "interval_steps": self._steps,
            "loss": loss.item() / self._steps,
            "loss_by_band": {name: mean for name, mean in means.items() if name in bands},
            "loss_by_bucket": {name: mean for name, mean in means.items() if name not in bands},
            "gradient_norm": self._norm.item() / self._steps,
            "learning_rate": learning_rate,
            "samples": round(samples.item()),
            "bad_clips": round(bad.item()),
            "captions_cut_t5": round(t5.item()),
            "captions_cut_clip": round(clip.item()),
            "tokens_per_s": tokens.item() / seconds,
            "mfu": tera.item() / seconds / layout.world / self._peak if self._peak else None,
            "data_wait": waited.item() / layout.data_ranks / seconds,  # only ranks that lead their group wait
            "step_s": seconds / self._steps,
            "time": time.time(),
        }
        if self._memory:
            line |= self._memory.line()
        self.start()
        return line


class MetricsLog:
    """Lines to OUT/metrics.jsonl and TensorBoard, by one rank.

    ``step`` in a line counts finished steps. A run that resumes cuts off the lines of steps that it will take again, so
    that no step is there twice.
    """

    def __init__(self, folder: Path, finished_steps: int) -> None:
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= finished_steps]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self._path)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=finished_steps + 1)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in line.items():
            parts = value if isinstance(value, dict) else {"": value}
            for part, number in parts.items():
                if number is not None and name not in ("step", "steps", "time"):
                    self._board.add_scalar(f"{name}/{part}" if part else name, number, line["step"], line["time"])
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; one that is cut off, as its writer was, is left out. None: an empty list."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
