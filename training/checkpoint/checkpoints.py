"""Checkpoints of a run, for an exact resume: weights, their average, the optimiser, and the facts of the run.

Each is a folder ``step-00000500`` in the format of torch.distributed.checkpoint, so that ranks write their own shares
and any other number of ranks, or one process, reads them; and ``facts.json``. It is written in the background, under a
hidden name, and renamed once every rank is done: what has the name is whole.

Ranks exchange no objects while they save or load, only numbers: a rank knows from the layout what it writes
(``save_plan.py``), and tells rank 0 where in its file that is.
"""

import os
import shutil
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from models.checkpoint import check_keys
from models.transformer import ContentVTransformer
from training.checkpoint.ema import Ema
from training.checkpoint.facts import FACTS, check_facts, plain, read_facts, write_facts
from training.checkpoint.files import INDEX, Reader, read, shapes_of, sync_folder, write_bytes, write_tensors
from training.checkpoint.names import hidden, step_folders, step_name, unfinished
from training.checkpoint.save_plan import SavePlan, entries_of, file_name, stage
from training.distributed.agreement import shared_failure
from training.distributed.parallel import Parallel

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
        self._plan: SavePlan | None = None
        self._index: tuple[list[Tensor], bytes] | None = None  # of the last save: where all was, and the index of that
        if parallel.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in unfinished(self.folder):
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
        tensors = state.tensors()
        entries = entries_of(tensors)
        if self._plan is None or self._plan.entries != entries:
            self._plan = SavePlan(entries, self._parallel.layout)
        staged = stage(tensors, self._plan.share(self._parallel.rank))
        partial = hidden(self.folder / step_name(step))
        self._pending = step, self._writer.submit(self._write, self._plan, staged, partial, facts)

    def finish(self) -> None:
        """Wait until the last checkpoint is whole. NotWritten: it could not be, on any rank."""
        if self._pending is None:
            return
        (step, written), self._pending = self._pending, None
        try:
            written.result()
        except BaseException as error:
            before = last_checkpoint(self.folder)
            good = f"the last whole one is {before[1]}" if before else "there is none before it"
            raise NotWritten(f"the checkpoint of step {step} was not written; {good}: {error}") from error

    def last(self) -> tuple[int, Path] | None:
        """Step and folder of the newest whole checkpoint, as rank 0 sees it."""
        found = last_checkpoint(self.folder)
        group = self._parallel.cpu_group
        if group is None:
            return found
        step = torch.tensor([found[0] if found else -1])
        dist.broadcast(step, 0, group=group)
        number = int(step.item())
        return None if number < 0 else (number, self.folder / step_name(number))

    def load(self, path: str | Path, state: State, facts: Mapping[str, Any]) -> int:
        """Load a checkpoint of any layout into ``state``, and say how many steps it had.

        CheckpointError, before anything is loaded: it is of another model or another run, or damaged.
        """
        check_facts(read_facts(Path(path)), _facts(state.model, facts), f"checkpoint {path}")
        return self.load_state(path, state)

    def load_state(self, path: str | Path, state: State) -> int:
        """Load a checkpoint of any run into ``state``, if its model is of the same size; otherwise like ``load``."""
        path = Path(path)
        there, tensors = read_facts(path), state.tensors()
        reader = Reader(path, there.get("index_crc32"))
        check_keys(reader.shapes(), shapes_of(tensors), f"checkpoint {path}")
        read(tensors, reader, self._parallel.cpu_group)
        state.take(tensors)
        return int(there["step"])

    def _write(self, plan: SavePlan, staged: list[Tensor], partial: Path, facts: dict[str, Any]) -> None:
        """Write this rank's file; once all ranks have, give the checkpoint its name. On failure all of them raise."""
        group, rank = self._parallel.checkpoint_group, self._parallel.rank
        spans, failure = torch.empty((0, 2), dtype=torch.int64), None
        try:
            partial.mkdir(exist_ok=True)
            spans = write_tensors(partial / file_name(rank), staged)
        except Exception as error:
            failure = error
        staged.clear()
        words = shared_failure(failure, group)  # from here on no rank writes in the folder but rank 0
        if words is None:
            every = self._gathered(spans)
            if rank == 0:
                try:
                    self._publish(plan, every, partial, facts)
                except Exception as error:
                    failure = error
        if rank == 0 and (words or failure):
            shutil.rmtree(partial, ignore_errors=True)
        published = shared_failure(failure if words is None else None, group)  # none goes on before the folder is gone
        if words or published:
            raise RuntimeError(words or published) from failure

    def _gathered(self, spans: Tensor) -> list[Tensor]:
        """On rank 0 where every rank's tensors are in its file, each [most pieces of a rank, 2]; elsewhere nothing."""
        group = self._parallel.checkpoint_group
        if group is None:
            return [spans]
        most = torch.tensor([len(spans)])
        dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
        padded = torch.zeros((int(most.item()), 2), dtype=torch.int64)
        padded[: len(spans)] = spans
        first = self._parallel.rank == 0
        every = [torch.empty_like(padded) for _ in range(self._parallel.layout.world)] if first else None
        dist.gather(padded, every, dst=0, group=group)
        return every or []

    def _publish(self, plan: SavePlan, spans: list[Tensor], partial: Path, facts: dict[str, Any]) -> None:
        """Complete a checkpoint whose tensors are all written, give it its name, and remove those that are too old."""
        index = self._indexed(plan, spans)
        write_bytes(partial / INDEX, index)
        write_facts(partial, facts | {"index_crc32": zlib.crc32(index)})
        whole = self.folder / step_name(facts["step"])
        old = hidden(whole, old=True)
        if whole.exists():  # of the same step, before the run went back
            os.rename(whole, old)
        os.rename(partial, whole)
        sync_folder(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        self._rotate()

    def _indexed(self, plan: SavePlan, spans: list[Tensor]) -> bytes:
        """The index; that of the save before where everything is at the same place, as it mostly is."""
        if self._index is None or not _same(self._index[0], spans):
            self._index = spans, plan.index(spans)
        return self._index[1]

    def _rotate(self) -> None:
        """Remove what is neither among the newest nor among the best of the others."""
        older = sorted(_whole(self.folder))[: -self._keep_last]
        by_loss = sorted(older, key=lambda found: (_loss(found[1]), -found[0]))
        for _, path in by_loss[self._keep_best :]:
            _remove(path)


def last_checkpoint(folder: str | Path) -> tuple[int, Path] | None:
    """Step and folder of the newest whole checkpoint below ``folder``."""
    return max(_whole(Path(folder)), default=None)


def _whole(folder: Path) -> list[tuple[int, Path]]:
    return [(step, path) for step, path in step_folders(folder) if (path / FACTS).is_file()]


def _loss(path: Path) -> float:
    loss = read_facts(path)["loss"]
    return inf if loss is None else loss


def _facts(model: ContentVTransformer, facts: Mapping[str, Any]) -> dict[str, Any]:
    """With the model's size."""
    return plain({**facts, "model": asdict(model.config)})


def _same(spans: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(spans) == len(others) and all(map(torch.equal, spans, others))


def _remove(path: Path) -> None:
    """Hidden first: nobody sees half of one, and what a crash leaves of it goes the next time."""
    old = hidden(path, old=True)
    os.rename(path, old)
    shutil.rmtree(old)
