"""Training on a Ray cluster: the ranks are workers of Ray Train, which finds machines and devices for them.

The trainer runs inside each worker, where it cannot hear SIGTERM: a file in the output folder, which all machines
share anyway, asks it to stop. What a rank prints is in OUTPUT/logs. All machines need this project installed, and
paths that mean the same. Nothing of this was run on NPUs or on more than one machine: there were none.
"""

import importlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from media.lock import check_free
from training.launch.failures import LINES, Failure, first_failure, reported
from training.launch.listener import (
    GRACE_S,
    POLL_S,
    Listener,
    Outcome,
    Restarts,
    calmly,
    clear_errors,
    tell,
    tell_metrics,
)
from training.observe.progress import Lines
from training.run import TrainingRun

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

RESOURCE = {"cpu": "CPU", "cuda": "GPU", "npu": "NPU"}
BACKEND = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
STOP = "stop"  # the file in the output folder; in it are the seconds after which a rank that is left kills itself
LOOK_S = 0.5  # between two looks for it
KILL_S = 30  # beyond the grace, for Ray to notice


def launch_on_ray(
    run: TrainingRun,
    processes: int,
    listener: Listener | None = None,
    *,
    restarts: int = 0,
    grace_s: int = GRACE_S,
    address: str | None = None,
    train: str = "training.main:train_run",
) -> Outcome:
    """Train with ``processes`` workers of Ray Train, and start again after a failure.

    Args:
        restarts: how often it is started again without a new checkpoint in between.
        grace_s: time that ranks have to save a checkpoint once they are to stop, after which they end themselves.
        address: of the cluster; None: RAY_ADDRESS, or a new one on this machine. One that this process is connected to
            already is used, and left as it is.
        train: module:function that each worker calls, with the run and with what says whether to stop; it returns
            the number of finished steps.

    ModuleNotFoundError where Ray is not installed; RankFailed as of ``training.launch.local.launch``;
    InUse where another run is writing in the output.
    """
    try:
        importlib.import_module("ray.train")
    except ImportError as missing:
        raise ModuleNotFoundError('launcher "ray" needs Ray Train: uv pip install "contentv[ray]"') from missing
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # which logs what is printed a second time
    check_free(str(run.folder))
    listener = listener or Listener()
    metrics, tries = Lines(run.folder / "metrics.jsonl"), Restarts(run, restarts)
    with connected(address, processes):
        while True:
            errors, stop = clear_errors(run), run.folder / STOP
            stop.unlink(missing_ok=True)
            logs = run.folder / "logs" / f"ray-{time.strftime('%Y%m%d-%H%M%S')}-{tries.made}"
            workers = Workers(run, processes, train, Stop(stop, grace_s), logs)
            workers.follow(listener, metrics)
            failure = first_failure(reported(errors), workers.failures())
            if failure is None:
                done = workers.done
                stopped = None if done == run.recipe.steps else f"stopped at step {done} of {run.recipe.steps}"
                return Outcome(stopped, tries.made)
            tries.again(failure, listener)


@contextmanager
def connected(address: str | None, processes: int) -> Iterator[None]:
    """A connection to Ray while the context lasts. Its end ends our workers, and a cluster that is ours."""
    import ray

    if ray.is_initialized():
        yield
        return
    ours = address is None and "RAY_ADDRESS" not in os.environ
    cpus = max(processes, os.cpu_count() or 1) if ours else None
    ray.init(address, num_cpus=cpus, include_dashboard=False if ours else None, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Stop:
    """How the workers are asked to stop: the file whose being there asks, and the seconds that they then have."""

    file: Path
    grace_s: int


class Workers:
    """The ranks of one attempt: a run of Ray Train, in a thread."""

    def __init__(self, run: TrainingRun, processes: int, train: str, stop: Stop, logs: Path) -> None:
        self.done: int | None = None
        self._error: BaseException | None = None
        self._asked_to_stop = stop
        self._logs = {rank: Lines(log_file(logs, rank)) for rank in range(processes)}
        self._last_words: dict[int, deque[str]] = {rank: deque(maxlen=LINES) for rank in self._logs}
        config = {"run": run.model_dump_json(), "train": train, "stop": str(stop.file), "logs": str(logs)}
        self._thread = Thread(target=self._fit, args=(trainer(run, processes, config),), daemon=True)
        self._thread.start()

    def _fit(self, trainer: "TorchTrainer") -> None:
        try:
            result: Any = trainer.fit()
            self.done = result.return_value
        except BaseException as problem:
            self._error = problem

    def follow(self, listener: Listener, metrics: Lines) -> None:
        """Pass on lines and metrics until the workers have ended."""
        try:
            while self._thread.is_alive() and not listener.stop.is_set():
                self._thread.join(POLL_S)
                self._pass_on(listener.on_line)
                tell(listener, metrics)
            if self._thread.is_alive():
                self._stop(listener.on_line)
        except BaseException:
            self._stop(calmly(listener.on_line))
            tell_metrics(listener, metrics)
            raise
        self._pass_on(listener.on_line)
        tell(listener, metrics)

    def _stop(self, on_line: Callable[[str], object]) -> None:
        self._asked_to_stop.file.write_text(str(self._asked_to_stop.grace_s))
        ends_in_s = self._asked_to_stop.grace_s + KILL_S
        deadline = time.monotonic() + ends_in_s
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(POLL_S)
            self._pass_on(on_line)
        if self._thread.is_alive():
            raise TimeoutError(f"Ray did not end the workers within {ends_in_s} s")

    def _pass_on(self, on_line: Callable[[str], object]) -> None:
        for rank, lines in self._logs.items():
            for line in lines.new():
                self._last_words[rank].append(line)
                on_line(f"[rank {rank}] {line}")

    def failures(self) -> list[Failure]:
        """How workers failed, as Ray saw it. Raises what failed beside them."""
        if self._error is None:
            return []
        of_ranks: dict[int, BaseException] = getattr(self._error, "worker_failures", {})
        if not of_ranks:
            raise self._error
        # Ray says no time: those whose process is gone are before those that raised, which said so themselves.
        return [
            Failure(rank, f"its worker ended: {words(error)}", 0.0, "\n".join(self._last_words[rank]))
            for rank, error in sorted(of_ranks.items())
        ]


def words(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def trainer(run: TrainingRun, processes: int, config: dict[str, str]) -> "TorchTrainer":
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    device = run.machine.device
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray passes on what it returns
        train_loop_config=config,
        torch_config=TorchConfig(backend=BACKEND[device]),
        scaling_config=ScalingConfig(
            num_workers=processes, use_gpu=device == "cuda", resources_per_worker={RESOURCE[device]: 1}
        ),
        run_config=RunConfig(name="ray", storage_path=str(run.folder.absolute())),
    )


def train_worker(config: dict[str, str]) -> int:
    """Train as one rank, inside a worker of Ray Train, which has joined the ranks; returns the finished steps."""
    from training.main import write_error

    run = TrainingRun.model_validate_json(config["run"])
    rank = int(os.environ["RANK"])
    if run.machine.device == "npu":
        os.environ["LOCAL_RANK"] = "0"  # Ray shows each worker its own NPU alone
    module, function = config["train"].split(":")
    file = log_file(Path(config["logs"]), rank)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=log, force=True
        )
        try:
            train: Callable[[TrainingRun, Callable[[], bool]], int] = getattr(importlib.import_module(module), function)
            return train(run, StopFile(Path(config["stop"])))
        except Exception as error:
            write_error(run.folder, error)
            raise


def log_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.log"


class StopFile:
    """Whether a worker is asked to stop, by a file; after the seconds that are in it, the worker ends itself."""

    def __init__(self, file: Path) -> None:
        self._file, self._asked = file, False
        Thread(target=self._watch, daemon=True).start()

    def __call__(self) -> bool:
        return self._asked

    def _watch(self) -> None:
        while not (grace := self._read()):
            time.sleep(LOOK_S)
        self._asked = True
        time.sleep(float(grace))
        print("killed: it did not stop in time", file=sys.stderr, flush=True)
        os._exit(1)

    def _read(self) -> str:
        try:
            return self._file.read_text()
        except FileNotFoundError:
            return ""
