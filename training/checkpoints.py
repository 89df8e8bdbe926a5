"""Checkpoints of a run, for an exact resume: weights, their average, the optimiser, and the facts of the run.

Each is a folder ``step-00000500`` in the format of torch.distributed.checkpoint, so that ranks write their own shards
and any other number of ranks, or one process, reads them; and ``facts.json``. It is written in the background, under a
hidden name, and renamed once every rank is done: what has the name is whole.

PyTorch's reader unpickles the index (``.metadata``) and any entry that is no tensor. Here entries are tensors alone,
which are read with ``weights_only``; and of the index only PyTorch's own descriptions of tensors are unpickled. While
they save or load, the ranks of a run exchange their plans pickled, in their own process group.

``python -m training.checkpoints CHECKPOINT OUTPUT`` exports any of them in the layout of diffusers, without a run.
"""

import argparse
import json
import os
import pickle
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
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from models.checkpoint import CheckpointError, check_keys, save_transformer
from models.transformer import ContentVTransformer
from training.ema import Ema
from training.parallel import Parallel

FACTS = "facts.json"
MAY_CHANGE = ("step", "loss", "layout")  # facts that another run may have, and still go on from a checkpoint
WEIGHTS = ("transformer",)  # parts of a checkpoint that an export writes; the others are taken over
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
            raise NotWritten(f"the checkpoint of step {step} was not written; {good}: {_cause(error)}") from error

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
        check_keys(reader.shapes(), _shapes(tensors), f"checkpoint {path}")
        group = self._parallel.cpu_group
        _read(tensors, reader, group)
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


class Writer(dcp.FileSystemWriter):
    """PyTorch's writer to a local folder, which says of a full disk that it is full."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            # The archive cannot be ended either, and torch.save says that ("unexpected pos") over the reason.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class Reader(dcp.FileSystemReader):
    """PyTorch's reader of a local folder, which unpickles of the index no more than descriptions of tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with open(Path(self.path) / ".metadata", "rb") as file:
                metadata = _Unpickler(file).load()
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"the index of checkpoint {self.path} cannot be read: {error}") from error
        for name, stored in metadata.state_dict_metadata.items():
            if not isinstance(stored, TensorStorageMetadata):
                raise CheckpointError(f"checkpoint {self.path} has more than tensors, which is not read: {name}")
        return metadata

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of all that is stored."""
        stored = self.read_metadata().state_dict_metadata
        return {name: tuple(one.size) for name, one in stored.items() if isinstance(one, TensorStorageMetadata)}


class _Unpickler(pickle.Unpickler):
    MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    CLASSES = ("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")
    OTHERS = ("StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING", "_StorageInfo")
    PLAIN = (("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"))

    def find_class(self, module: str, name: str) -> Any:
        described = module in self.MODULES and name in self.CLASSES + self.OTHERS
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if described or dtype or (module, name) in self.PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no description of a tensor")


def export(
    model: ContentVTransformer,
    ema: Ema,
    folder: str | Path,
    source: str | Path | None,
    parallel: Parallel,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the averaged weights in the layout of diffusers, whole or not at all: ``folder/transformer``.

    They are gathered on rank 0 alone, one tensor at a time. All ranks call it, and return when it is written.

    Args:
        source: the checkpoint that the run started from: its VAE, text encoders and other parts are linked, or copied.
        dtype: of the written weights; float32 by default.

    Raises:
        FileExistsError: the folder is there.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in ema.state.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if parallel.rank == 0:
            state[name] = whole.to("cpu", dtype or whole.dtype)
        del whole
    failure: Exception | None = None
    if parallel.rank == 0:
        try:
            write_export(model, state, Path(folder), source)
        except Exception as error:
            failure = error
    if parallel.cpu_group is not None:
        failed = torch.tensor([failure is not None], dtype=torch.int32)
        dist.broadcast(failed, 0, group=parallel.cpu_group)
        if failed.item() and failure is None:
            raise CheckpointError(f"rank 0 could not write {folder}")
    if failure is not None:
        raise failure


def write_export(
    model: ContentVTransformer, state: Mapping[str, Tensor], folder: Path, source: str | Path | None
) -> None:
    """``state`` as ``folder/transformer``, and beside it the other parts of ``source``, if that is a folder."""
    if folder.exists():
        raise FileExistsError(f"{folder} is there already, and a checkpoint is never overwritten")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a crash
    try:
        save_transformer(model, partial / "transformer", state=state)
        if source is not None and (Path(source) / "transformer").is_dir():
            for part in sorted(Path(source).iterdir()):
                if part.is_dir() and part.name not in WEIGHTS and not part.name.startswith("."):
                    shutil.copytree(part, partial / part.name, copy_function=_link)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def export_checkpoint(
    path: str | Path, folder: str | Path, source: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """``export`` of a checkpoint on disk, in one process.

    Raises:
        CheckpointError: it is no checkpoint of a run, or damaged.
        FileExistsError: the folder is there.
    """
    config = read_facts(Path(path))["model"]
    with torch.device("meta"):
        model = ContentVTransformer(**config)
    reader = Reader(path)
    stored = {name: shape for name, shape in reader.shapes().items() if name.startswith("ema.")}
    check_keys(stored, _shapes({"ema": model.state_dict()}), f"checkpoint {path}")
    state = {name: torch.empty(tensor.shape) for name, tensor in model.state_dict().items()}
    _read({"ema": state}, reader, None)
    write_export(model, {name: tensor.to(dtype) for name, tensor in state.items()}, Path(folder), source)


def main() -> None:
    parser = argparse.ArgumentParser(prog="training.checkpoints", description=export_checkpoint.__doc__)
    parser.add_argument("checkpoint", help="a folder step-00000500 of a run")
    parser.add_argument("output", help="a new folder, for the layout of diffusers")
    parser.add_argument("--source", help="the checkpoint that the run started from, for its VAE and text encoders")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the written weights")
    given = parser.parse_args()
    export_checkpoint(given.checkpoint, given.output, given.source, getattr(torch, given.dtype))


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


def _shapes(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    """By the names that PyTorch gives nested tensors."""
    return {f"{part}.{name}": tuple(one.shape) for part, named in tensors.items() for name, one in named.items()}


def _read(tensors: dict[str, Any], reader: "Reader", group: dist.ProcessGroup | None) -> None:
    try:
        dcp.load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)
    except dcp.CheckpointException as error:
        raise CheckpointError(f"checkpoint {reader.path} is damaged: {_cause(error)}") from error


def _sync(folder: Path) -> None:
    """A rename is on disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cause(error: BaseException) -> str:
    """The first reason that a rank gives, without its traceback."""
    if isinstance(error, dcp.CheckpointException) and error.failures:
        rank, (reason, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {reason!r}"
    return repr(error)


def _link(source: str, target: str) -> None:
    """A hard link where that can be, else a copy."""
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:
        shutil.copy2(real, target)


if __name__ == "__main__":
    main()
