"""Export: the averaged weights of a run in the layout of diffusers, which sampling and the next stage read.

    python -m training.checkpoint.export OUT/checkpoints/step-00000500 FOLDER [--source START]

exports any checkpoint of a run, in one process.
"""

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from models.checkpoint import CheckpointError, check_keys, save_transformer
from models.transformer import ContentVTransformer
from training.checkpoint.ema import Ema
from training.checkpoint.facts import read_facts, write_facts
from training.checkpoint.files import Reader, read, shapes_of
from training.distributed.agreement import shared_failure
from training.distributed.parallel import Parallel

WEIGHTS = ("transformer",)  # parts of a checkpoint that an export writes; the others are taken over


def export(
    model: ContentVTransformer,
    ema: Ema,
    folder: str | Path,
    source: str | Path | None,
    parallel: Parallel,
    facts: Mapping[str, Any],
) -> None:
    """Write the averaged weights in the layout of diffusers, whole or not at all: ``folder/transformer``.

    They are gathered on rank 0 alone, one tensor at a time. All ranks call it, and return when it is written.

    Args:
        source: the checkpoint that the run started from: its VAE, text encoders and other parts are linked, or copied.
        facts: of the run and of the step, to be left in ``folder``.

    Raises:
        FileExistsError: the folder is there; CheckpointError on the other ranks.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in ema.state.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if parallel.rank == 0:
            state[name] = whole.to("cpu")
        del whole
    failure: Exception | None = None
    if parallel.rank == 0:
        try:
            write_export(model, state, Path(folder), source, facts)
        except Exception as error:
            failure = error
    words = shared_failure(failure, parallel.cpu_group)
    if failure is not None:
        raise failure
    if words is not None:
        raise CheckpointError(f"{folder} was not written: {words}")


def write_export(
    model: ContentVTransformer,
    state: Mapping[str, Tensor],
    folder: Path,
    source: str | Path | None,
    facts: Mapping[str, Any],
) -> None:
    """``state`` as ``folder/transformer``, beside it the other parts of ``source``, if that is a folder, and facts."""
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
        write_facts(partial, facts)
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
    facts = read_facts(Path(path))
    config = facts["model"]
    with torch.device("meta"):
        model = ContentVTransformer(**config)
    reader = Reader(path, facts.get("index_crc32"))
    stored = {name: shape for name, shape in reader.shapes().items() if name.startswith("ema.")}
    check_keys(stored, shapes_of({"ema": model.state_dict()}), f"checkpoint {path}")
    state = {name: torch.empty(tensor.shape) for name, tensor in model.state_dict().items()}
    read({"ema": state}, reader, None)
    write_export(model, {name: tensor.to(dtype) for name, tensor in state.items()}, Path(folder), source, facts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="training.checkpoint.export", description=export_checkpoint.__doc__)
    parser.add_argument("checkpoint", help="a folder step-00000500 of a run")
    parser.add_argument("output", help="a new folder, for the layout of diffusers")
    parser.add_argument("--source", help="the checkpoint that the run started from, for its VAE and text encoders")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the written weights")
    given = parser.parse_args()
    export_checkpoint(given.checkpoint, given.output, given.source, getattr(torch, given.dtype))


def _link(source: str, target: str) -> None:
    """A hard link where that can be, else a copy."""
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:
        shutil.copy2(real, target)


if __name__ == "__main__":
    main()
