"""One rank of a training run: ``python -m training.main RUN.json``, as torchrun starts it, or plainly for one rank.

It goes on from the newest whole checkpoint below the run's output, if there is one. Exit status: 0 done, or stopped
cleanly on SIGTERM; 1 failed; 2 failed, and would fail again.
"""

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from media.lock import Hold, InUse
from media.whole_file import writing
from training.checkpoint.checkpoints import Checkpoints, State
from training.checkpoint.ema import Ema
from training.checkpoint.export import export
from training.checkpoint.facts import run_digest
from training.checkpoint.identity import RESULT, starting_weights
from training.data.manifest import open_manifest
from training.data.plan import BatchPlan, Job
from training.distributed.agreement import from_first_rank
from training.distributed.layout import Layout
from training.distributed.parallel import Parallel, start, stop
from training.distributed.prepare import prepare
from training.distributed.weights import read_config_of
from training.encode.encoding import open_encoding
from training.garbage import collected_by_count
from training.loader import Loader
from training.loop import TrainingDiverged, train
from training.memory.measured import PeakMemory
from training.memory.micro_batch import agreed_samples_at_once, held_besides, memory_plan
from training.observe.bad_clips import forget_bad_clips
from training.observe.lineage import forget
from training.observe.metrics import Metrics, MetricsLog
from training.observe.observer import Observer
from training.observe.samples import Sampler
from training.output import open_output, output_held, write_record
from training.run import TrainingRun, facts_of

WOULD_FAIL_AGAIN = (ValueError, FileNotFoundError, TrainingDiverged)  # most errors of ours are ValueErrors

_log = logging.getLogger(__name__)


class StopRequest:
    """Whether this process was asked to end, by SIGTERM; calling it tells."""

    def __init__(self) -> None:
        self._asked = False

    def listen(self) -> None:
        """From now on SIGTERM asks, and does not kill. Only a main thread can listen."""
        signal.signal(signal.SIGTERM, self._ask)

    def __call__(self) -> bool:
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def train_run(run: TrainingRun, stop_asked: Callable[[], bool]) -> int:
    """Train as one of the ranks that were started; returns how many steps are finished: all, or fewer if stopped.

    Raises:
        InUse: another run is writing in the output.
        CheckpointError: what is in the output is of another run.
    """
    machine = run.machine
    world = int(os.environ.get("WORLD_SIZE", "1"))
    parallel = start(Layout(world, machine.shard, machine.sequence), machine.device)
    try:
        with output_held(run.folder, parallel) as hold:
            return _train(run, parallel, hold, stop_asked)
    finally:
        stop(parallel)


def _train(run: TrainingRun, parallel: Parallel, hold: Hold, stop_asked: Callable[[], bool]) -> int:
    machine, recipe = run.machine, run.recipe
    manifest = open_manifest(run.manifests)
    plan = BatchPlan(manifest, Job(recipe=recipe, seed=run.seed, manifest=manifest.fingerprint))
    plan.check_ranks(parallel.layout.data_ranks)
    encoding = open_encoding(run, parallel, manifest.fingerprint)
    weights = from_first_rank(lambda: starting_weights(run.checkpoint), parallel.cpu_group)
    model_size = {"model": asdict(read_config_of(run.checkpoint))}
    facts = facts_of(run, manifest.fingerprint, weights, encoding.fingerprint) | model_size
    if open_output(run, facts, parallel):
        return recipe.steps

    model = prepare(run.checkpoint, machine, parallel, run.seed)
    planned = memory_plan(run, manifest, model, parallel.layout)
    at_once = agreed_samples_at_once(run, planned, parallel)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=machine.device != "npu",
    )
    state = State(model, Ema(model, recipe.ema_decay), optimizer)
    checkpoints = Checkpoints(run.folder / "checkpoints", parallel, run.record.keep_last, run.record.keep_best)
    done = 0
    if newest := checkpoints.last():
        done = checkpoints.load(newest[1], state, facts)
    elif run.branch_from:
        done = checkpoints.load_state(run.branch_from, state)

    if parallel.rank == 0:
        forget(run.folder, done)
        forget_bad_clips(run.folder, done)
    log = MetricsLog(run.folder, done) if parallel.rank == 0 else None
    memory = PeakMemory(planned.setup, held_besides(planned, state, parallel.device), parallel.device)
    metrics = Metrics(parallel, model.config, list(manifest.rows), machine.peak_tflops, memory)
    sampler = Sampler(run, run_digest(facts), manifest, parallel, encoding.embed)

    def save(step: int, loss: float) -> None:
        hold.check()
        checkpoints.save(step, state, loss, facts)

    data_rank = parallel.data_rank if parallel.leader else None
    observer = Observer(run, metrics, data_rank, log, save=save, sample=lambda step: sampler(state, step))
    feed = encoding.feed(run, plan, parallel, done)
    try:
        loader = Loader(plan, feed, parallel, at_once, range(done, recipe.steps))
        with collected_by_count():
            done = train(state, loader, parallel, recipe, observer, stop_asked)
        checkpoints.finish()
    except TrainingDiverged:
        checkpoints.finish()  # of good steps, and all ranks are here
        raise
    finally:
        if feed:
            feed.close()
        if log:
            log.close()
    if done == recipe.steps:
        _finish(run, facts, state, sampler, parallel)
    return done


def _finish(run: TrainingRun, facts: dict[str, Any], state: State, sampler: Sampler, parallel: Parallel) -> None:
    """Leave the result of a run whose last step is done: what a crash kept from being written before, too."""
    steps, result = run.recipe.steps, run.folder / RESULT
    if from_first_rank(lambda: str(sampler.made(steps)), parallel.cpu_group) != str(True):
        sampler(state, steps)
    export(state.model, state.ema, result, run.checkpoint, parallel, facts | {"step": steps})
    if parallel.rank == 0:
        write_record(run, facts, parallel.layout.world)


def write_error(folder: Path, error: BaseException) -> None:
    """Leave OUT/errors/rank-00003.json: what went wrong on this rank, and whether it is worth a restart."""
    rank = int(os.environ.get("RANK", "0"))
    words = {
        "rank": rank,
        "time": time.time(),
        "kind": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "retry": not isinstance(error, WOULD_FAIL_AGAIN),
    }
    with writing(str(folder / "errors" / f"rank-{rank:05d}.json")) as file:
        file.write(json.dumps(words, indent=2).encode())


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    run = TrainingRun.model_validate_json(Path(sys.argv[1]).read_text())
    stop_asked = StopRequest()
    stop_asked.listen()
    try:
        done = train_run(run, stop_asked)
    except Exception as error:
        if not isinstance(error, InUse):  # what is written in the output is of the run that holds it
            write_error(run.folder, error)
        traceback.print_exc()
        return 2 if isinstance(error, WOULD_FAIL_AGAIN) else 1
    if done < run.recipe.steps and int(os.environ.get("RANK", "0")) == 0:
        print(f"stopped at step {done} of {run.recipe.steps}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
