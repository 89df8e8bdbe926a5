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
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from media.whole_file import writing
from training.checkpoint.checkpoints import Checkpoints, State
from training.checkpoint.ema import Ema
from training.checkpoint.export import export
from training.data.manifest import open_manifest
from training.data.plan import BatchPlan, Job
from training.distributed.layout import Layout
from training.distributed.parallel import Parallel, start, stop
from training.distributed.weights import starting_model
from training.encode.encoding import open_encoding
from training.garbage import collected_by_count
from training.loader import Loader
from training.loop import TrainingDiverged, train
from training.memory.micro_batch import memory_plan, samples_at_once
from training.observe.lineage import Lineage, forget
from training.observe.metrics import Metrics, MetricsLog, read_metrics
from training.observe.observer import Observer
from training.observe.samples import Sampler
from training.run import TrainingRun, facts_of

WOULD_FAIL_AGAIN = (ValueError, FileNotFoundError, TrainingDiverged)  # most errors of ours are ValueErrors
PACKAGES = ("contentv", "av", "numpy", "pyarrow", "torch")

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
    """Train as one of the ranks that were started; returns how many steps are finished: all, or fewer if stopped."""
    machine, recipe = run.machine, run.recipe
    world = int(os.environ.get("WORLD_SIZE", "1"))
    parallel = start(Layout(world, machine.shard, machine.sequence), machine.device)
    try:
        manifest = open_manifest(run.manifests)
        plan = BatchPlan(manifest, Job(recipe=recipe, seed=run.seed, manifest=manifest.fingerprint))
        plan.check_ranks(parallel.layout.data_ranks)

        model = starting_model(run.checkpoint, parallel, getattr(torch, machine.dtype), run.seed)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=machine.device != "npu",
        )
        state = State(model, Ema(model, recipe.ema_decay), optimizer)
        checkpoints = Checkpoints(run.folder / "checkpoints", parallel, run.record.keep_last, run.record.keep_best)
        encoding = open_encoding(run, parallel, manifest.fingerprint)
        facts = facts_of(run, manifest.fingerprint)
        newest = checkpoints.last()
        done = checkpoints.load(newest[1], state, facts) if newest else 0

        if parallel.rank == 0:
            forget(run.folder, done)
        log = MetricsLog(run.folder, done) if parallel.rank == 0 else None
        metrics = Metrics(parallel, model.config, list(manifest.rows), machine.peak_tflops)
        lineage = Lineage(run.folder, parallel.data_rank if parallel.leader else None, recipe.fps)
        sampler = Sampler(manifest, recipe, run.record, run.folder, run.checkpoint, parallel, encoding.embed)
        observer = Observer(
            run,
            metrics,
            lineage,
            log,
            save=lambda step, loss: checkpoints.save(step, state, loss, facts),
            sample=lambda step: sampler(state, step),
        )
        feed = encoding.feed(run, plan, parallel, done)
        try:
            at_once = samples_at_once(run, memory_plan(run, manifest, model.config, parallel.layout))
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
            _finish(run, state, sampler, parallel)
        return done
    finally:
        stop(parallel)


def _finish(run: TrainingRun, state: State, sampler: Sampler, parallel: Parallel) -> None:
    """Leave the result of a run whose last step is done: what a crash kept from being written before, too."""
    there = torch.tensor([sampler.made(run.recipe.steps), (run.folder / "checkpoint").is_dir()], dtype=torch.int32)
    if parallel.cpu_group is not None:  # rank 0's word, before it writes: a late rank would find its files and not join
        dist.broadcast(there, 0, group=parallel.cpu_group)
    sampled, exported = there.tolist()
    if not sampled:
        sampler(state, run.recipe.steps)
    if not exported:
        export(state.model, state.ema, run.folder / "checkpoint", run.checkpoint, parallel)
    if parallel.rank == 0:
        record = {
            "run": run.model_dump(mode="json"),
            "world": parallel.layout.world,
            "versions": {package: version(package) for package in PACKAGES},
            "metrics": read_metrics(run.folder / "metrics.jsonl")[-1],
        }
        with writing(str(run.folder / "run.json")) as file:
            file.write(json.dumps(record, indent=2).encode())


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
        write_error(run.folder, error)
        traceback.print_exc()
        return 2 if isinstance(error, WOULD_FAIL_AGAIN) else 1
    if done < run.recipe.steps and int(os.environ.get("RANK", "0")) == 0:
        print(f"stopped at step {done} of {run.recipe.steps}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
