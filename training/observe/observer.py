"""The observer: what a run leaves while it trains, when each is due: metrics, lineage, checkpoints, sample videos."""

import logging
import math
from collections.abc import Callable

from torch import Tensor

from training.loader import MicroBatch
from training.observe.bad_clips import BadClips
from training.observe.lineage import Lineage
from training.observe.metrics import Metrics, MetricsLog
from training.run import TrainingRun

_log = logging.getLogger(__name__)


class Observer:
    """Told of every micro-batch and step; all ranks have one, as most of what it does is done by all.

    Args:
        data_rank: of the rank that brings batches, which notes their clips; None on the others.
        log: where lines go, on rank 0; None elsewhere.
        save: writes a checkpoint, given the number of finished steps and the mean loss since the last one.
        sample: makes sample videos, given the number of finished steps.
    """

    def __init__(
        self,
        run: TrainingRun,
        metrics: Metrics,
        data_rank: int | None,
        log: MetricsLog | None,
        save: Callable[[int, float], None],
        sample: Callable[[int], None],
    ) -> None:
        self._config, self._recipe = run.record, run.recipe
        self._metrics, self._log = metrics, log
        self._lineage = Lineage(run.folder, data_rank, run.recipe.fps)
        self._bad_clips = BadClips(run.folder, data_rank, run.encode.most_bad_clips)
        self._save, self._sample = save, sample
        self._loss = self._steps = 0.0  # since the last checkpoint

    def micro_batch(self, step: int, batch: MicroBatch, errors: Tensor) -> None:
        """Note what was trained on. ``errors`` are float32 [B], as ``Metrics.add`` takes them."""
        self._metrics.add(batch.buckets, batch.shape, batch.sigma, batch.tokens.shape[1], errors)
        self._metrics.add_cut(*batch.cut)
        self._lineage.add(step, batch.samples, batch.sigma, batch.bad)
        for sample, bad in zip(batch.samples, batch.bad, strict=True):
            self._bad_clips.add(step, sample, bad)
            self._metrics.add_bad(len(bad))

    def step(self, step: int, loss: Tensor, norm: Tensor, waited_s: float) -> None:
        """Note a step that was made; as ``Metrics.end_step``."""
        self._metrics.end_step(step, loss, norm, waited_s)

    def after(self, step: int, last: bool) -> None:
        """Write what is due after ``step`` finished steps; a last step leaves a line and a checkpoint in any case.

        Raises:
            NotFinite: a gradient was no number. It is raised before anything else looks at the weights.
            TooManyBadClips: more clips cannot be read than the run may have.
        """
        steps, config = self._recipe.steps, self._config
        save = last or step % config.save_every == 0
        log = save or step % config.log_every == 0
        sample = bool(config.sample_every) and step % config.sample_every == 0
        if log or sample:
            self._metrics.check()
        if log:
            line = self._metrics.line(step, steps, self._recipe.learning_rate_at(step - 1))
            taken = line.pop("interval_steps")
            self._loss, self._steps = self._loss + taken * line["loss"], self._steps + taken
            if self._log:
                self._log.write(line)
                _log.info("step %d of %d: loss %.4f, %.2f s a step", step, steps, line["loss"], line["step_s"])
            self._bad_clips.check(line["samples"], line["bad_clips"])
        with self._metrics.apart():  # none of this is a step's time
            if save:
                self._lineage.write()
                self._save(step, self._loss / self._steps if self._steps else math.nan)
                self._loss = self._steps = 0.0
            if sample:
                self._sample(step)
