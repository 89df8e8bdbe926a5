"""Checkpoints of a run, for an exact resume: weights, their average, the optimiser, and the facts of the run.

Each is a folder ``step-00000500`` in the format of torch.distributed.checkpoint, so that ranks write their own shards
and any other number of ranks, or one process, reads them; and ``facts.json``. It is written in the background, under a
hidden name, and renamed once every rank is done: what has the name is whole.

While they save or load, the ranks of a run exchange their plans pickled, in their own process group.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from models.checkpoint import CheckpointError, check_keys
from models.transformer import ContentVTransformer
from training.checkpoint.ema import Ema
from training.checkpoint.files import Reader, Writer, cause, read, shapes_of
from training.distributed.parallel import Parallel

FACTS = "facts.json"
MAY_CHANGE = ("step", "loss", "layout")  # facts that another run may have, and still go on from a checkpoint
OLD = "-old"
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is no mistake


class NotWritten(RuntimeError):
    """A checkpoint could not be written; names its step, the last whole checkpoint, and the reason."""


@dataclass(frozen=True)
class State:
    """What a step of training changes, apart from its number."""

    model: ContentVTransformer
    ema: Ema
    optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All of it, by part and name; a DTensor where it is sharded. Model and average share their memory with it.

        The optimiser's settings are not in it: the recipe has them.
        """
        parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        moments = {name: value for name, value in self._optimizer().items() if torch.is_tensor(value)}
        return {"model": parameters, "ema": self.ema.state, "optimizer": moments}

    def take(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Give the optimiser what was loaded into ``tensors``; the rest was loaded in place."""
        loaded = {**self._optimizer(), **tensors["optimizer"]}
        set_optimizer_state_dict(self.model, self.optimizer, loaded, options=FLAT)

    def _optimizer(self) -> dict[str, Any]:
        return get_optimizer_state_dict(self.model, self.optimizer, options=FLAT)


class Checkpoints:
    """The checkpoints of a run, below ``folder``. All ranks make one, and call its methods alike.

    What a crash left half written is removed.

    Args:
        keep_last: how many of the newest stay.
        keep_best: how many stay besides, those of the lowest loss.
    """

    def __init__(self, folder: str | Path, parallel: Parallel, keep_last: int = 2, keep_best: int = 1) -> None:
        if keep_last < 1 or keep_best < 0:
            raise ValueError(f"the newest checkpoint stays; keep_last is {keep_last} and keep_best {keep_best}")
        self.folder = Path(folder)
        self._parallel = parallel
        self._keep_last, self._keep_best = keep_last, keep_best
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._pending: tuple[int, Future[None]] | None = None
        if parallel.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".step-*"):
                shutil.rmtree(left)

    def save(self, step: int, state: State, loss: float | None, facts: Mapping[str, Any]) -> None:
        """Copy the state after ``step`` steps to the CPU, and write it while training goes on.

        Waits for the checkpoint before, if that is not whole yet.

        Args:
            loss: by which the best are kept; None or no number: worse than all others.
            facts: of the run, for ``load`` to compare; of what JSON has.

        Raises:
            NotWritten: the checkpoint before could not be, on any rank.
        """
        self.finish()
        number = loss if loss is not None and isfinite(loss) else None
        facts = {"step": step, "loss": number, "layout": asdict(self._parallel.layout), **_facts(state.model, facts)}
        partial, group = self.folder / f".{_name(step)}", self._parallel.checkpoint_group
        writer, alone = Writer(partial), group is None
        written = dcp.async_save(state.tensors(), storage_writer=writer, process_group=group, no_dist=alone)
        self._pending = step, self._writer.submit(self._publish, written, partial, facts)  # type: ignore[arg-type]

    def finish(self) -> None:
        """Wait until the last checkpoint is whole.

        NotWritten: it could not be, on any rank.
        """
        if self._pending is None:
            return
        (step, written), self._pending = self._pending, None
        try:
            written.result()
        except BaseException as error:
            before = last_checkpoint(self.folder)
            good = f"the last whole one is {before[1]}" if before else "there is none before it"
            raise NotWritten(f"the checkpoint of step {step} was not written; {good}: {cause(error)}") from error

    def last(self) -> tuple[int, Path] | None:
        """Step and folder of the newest whole checkpoint, as rank 0 sees it."""
        found = last_checkpoint(self.folder)
        group = self._parallel.cpu_group
        if group is None:
            return found
        step = torch.tensor([found[0] if found else -1])
        dist.broadcast(step, 0, group=group)
        number = int(step.item())
        return None if number < 0 else (number, self.folder / _name(number))

    def load(self, path: str | Path, state: State, facts: Mapping[str, Any]) -> int:
        """Load a checkpoint of any layout into ``state``, and say how many steps it had.

        CheckpointError, before anything is loaded: it is of another model or another run, or damaged.
        """
        path = Path(path)
        there, tensors = read_facts(path), state.tensors()
        check_facts(there, _facts(state.model, facts), path)
        reader = Reader(path)
        check_keys(reader.shapes(), shapes_of(tensors), f"checkpoint {path}")
        group = self._parallel.cpu_group
        read(tensors, reader, group)
        state.take(tensors)
        return int(there["step"])

    def _publish(self, written: "Future[Any]", partial: Path, facts: Mapping[str, Any]) -> None:
        """Give a checkpoint its name once all ranks have written theirs; on failure all of them raise."""
        group, rank = self._parallel.checkpoint_group, self._parallel.rank
        failure: BaseException | None = None
        try:
            written.result()
            if rank == 0:
                _write_facts(partial, facts)
                whole = self.folder / partial.name[1:]
                if whole.exists():  # of the same step, before the run went back
                    _remove(whole)
                os.rename(partial, whole)
                _sync(self.folder)
                self._rotate()
        except BaseException as error:
            failure = error
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
        if group is not None:
            written_by_all = torch.tensor([failure is None], dtype=torch.int32)
            dist.all_reduce(written_by_all, dist.ReduceOp.MIN, group=group)
            if failure is None and not written_by_all.item():
                failure = RuntimeError("rank 0 could not give it its name")
        if failure is not None:
            raise failure

    def _rotate(self) -> None:
        """Remove what is neither among the newest nor among the best of the others."""
        older = sorted(_whole(self.folder))[: -self._keep_last]
        by_loss = sorted(older, key=lambda found: (_loss(found[1]), -found[0]))
        for _, path in by_loss[self._keep_best :]:
            _remove(path)


def last_checkpoint(folder: str | Path) -> tuple[int, Path] | None:
    """Step and folder of the newest whole checkpoint below ``folder``."""
    return max(_whole(Path(folder)), default=None)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint. CheckpointError: there is none, or they cannot be read."""
    try:
        return json.loads((path / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of a run: {error}") from error


def check_facts(there: Mapping[str, Any], here: Mapping[str, Any], path: Path) -> None:
    """CheckpointError if a checkpoint is of another model, recipe or data; says in what they differ."""
    differ = [
        difference
        for name in here
        if name not in MAY_CHANGE
        for difference in _differences(name, there.get(name), here[name])
    ]
    if differ:
        raise CheckpointError("\n".join([f"checkpoint {path} is of another run, and was not loaded:", *differ]))


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _whole(folder: Path) -> list[tuple[int, Path]]:
    return [(int(path.name.removeprefix("step-")), path) for path in folder.glob("step-*") if (path / FACTS).is_file()]


def _loss(path: Path) -> float:
    loss = read_facts(path)["loss"]
    return inf if loss is None else loss


def _facts(model: ContentVTransformer, facts: Mapping[str, Any]) -> dict[str, Any]:
    """With the model's size, as they are when they are read again."""
    return json.loads(json.dumps({**facts, "model": asdict(model.config)}))


def _differences(name: str, there: Any, here: Any) -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted(there.keys() | here.keys())
        return [line for key in keys for line in _differences(f"{name}.{key}", there.get(key), here.get(key))]
    return [] if there == here else [f"  {name} is {there!r} there and {here!r} here"]


def _write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    with open(folder / FACTS, "w") as file:
        json.dump(facts, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def _remove(path: Path) -> None:
    """Hidden first: nobody sees half of one, and what a crash leaves of it goes the next time."""
    hidden = path.with_name(f".{path.name}{OLD}")
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def _sync(folder: Path) -> None:
    """A rename is on disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
