"""What a run leaves while it trains: lines of metrics, lineage, checkpoints and sample videos, when each is due."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from training.checkpoint.checkpoints import Checkpoints, State
from training.observe.lineage import Lineage
from training.observe.metrics import Metrics, MetricsLog
from training.recipe import Recipe
from training.run import RecordConfig

_log = logging.getLogger(__name__)


class Records:
    """Told of every finished step; all ranks have one, as most of it is done by all.

    Args:
        log: where lines go, on rank 0; None elsewhere.
        facts: of the run, that a checkpoint carries.
    """

    def __init__(
        self,
        config: RecordConfig,
        recipe: Recipe,
        state: State,
        metrics: Metrics,
        lineage: Lineage,
        checkpoints: Checkpoints,
        facts: Mapping[str, Any],
        sampler: Callable[[State, int], None],
        log: MetricsLog | None,
    ) -> None:
        self._config, self._recipe, self._state = config, recipe, state
        self._metrics, self._lineage, self._checkpoints = metrics, lineage, checkpoints
        self._facts, self._sampler, self._log = facts, sampler, log
        self._loss = self._steps = 0.0  # since the last checkpoint

    def after_step(self, step: int, last: bool) -> None:
        """Write what is due after ``step`` finished steps; a last step leaves a line and a checkpoint in any case.

        NotFinite: a gradient was no number, and nothing of it is saved.
        """
        steps, config = self._recipe.steps, self._config
        save = last or step % config.save_every == 0
        if save or step % config.log_every == 0:
            line = self._metrics.line(step, steps, self._recipe.learning_rate_at(step - 1))
            taken = line.pop("interval_steps")
            self._loss, self._steps = self._loss + taken * line["loss"], self._steps + taken
            if self._log:
                self._log.write(line)
                _log.info("step %d of %d: loss %.4f, %.2f s a step", step, steps, line["loss"], line["step_s"])
        if save:
            self._lineage.write()
            loss = self._loss / self._steps if self._steps else math.nan
            self._checkpoints.save(step, self._state, loss, self._facts)
            self._loss = self._steps = 0.0
        if config.sample_every and step % config.sample_every == 0:
            self._sampler(self._state, step)
        if save:
            self._metrics.start()  # none of this is a step's time
