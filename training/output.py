"""The output of a run as a whole: that one run writes in it, that what stands there is this run's, and its record."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from media.lock import Hold, InUse, locked
from media.whole_file import writing
from training.checkpoint.checkpoints import last_checkpoint
from training.checkpoint.facts import run_digest
from training.checkpoint.identity import RECORD, begin, branch_record, check_output, has_record, is_finished
from training.distributed.agreement import from_first_rank, shared_failure
from training.distributed.parallel import Parallel
from training.observe.lineage import read_branch, write_branch
from training.observe.metrics import read_metrics
from training.run import TrainingRun

PACKAGES = ("contentv", "av", "numpy", "pyarrow", "torch")


@contextmanager
def output_held(folder: Path, parallel: Parallel) -> Iterator[Hold]:
    """Hold the output for this run. All ranks call it, and rank 0 has the lock, which ends with its process.

    InUse, on all ranks: another run is writing there.
    """
    with ExitStack() as stack:
        hold, failure = Hold(), None
        if parallel.rank == 0:
            try:
                hold = stack.enter_context(locked(str(folder)))
            except InUse as problem:
                failure = problem
        if words := shared_failure(failure and str(failure), parallel.cpu_group):
            raise InUse(words) from failure
        yield hold


def open_output(run: TrainingRun, facts: Mapping[str, Any], parallel: Parallel) -> bool:
    """Make the output this run's; returns whether the run is finished already. All ranks call it.

    Args:
        facts: of the run, its model's size among them.

    CheckpointError on rank 0, ValueError on the others: what is there is of another run; or it is to branch from a
    checkpoint that it cannot branch from.
    """
    return from_first_rank(lambda: str(_opened(run, facts, parallel.layout.world)), parallel.cpu_group) == str(True)


def _opened(run: TrainingRun, facts: Mapping[str, Any], world: int) -> bool:
    check_output(run.folder, facts)
    if is_finished(run.folder):
        if not has_record(run.folder, facts):
            write_record(run, facts, world)
        return True
    branch = None
    if run.branch_from and not last_checkpoint(run.folder / "checkpoints"):
        branch = branch_record(run.branch_from, facts)
    begin(run.folder)
    if branch:
        write_branch(run.folder, branch)
    return False


def write_record(run: TrainingRun, facts: Mapping[str, Any], world: int) -> None:
    """Leave OUT/run.json, the last file of a run: it says that the run is done, and whose all the others are."""
    lines = read_metrics(run.folder / "metrics.jsonl")
    record = {
        "run": run.model_dump(mode="json"),
        "digest": run_digest(facts),
        "facts": dict(facts),
        "branch": read_branch(run.folder),
        "world": world,
        "versions": {package: version(package) for package in PACKAGES},
        "metrics": lines[-1] if lines else None,
    }
    with writing(str(run.folder / RECORD)) as file:
        file.write(json.dumps(record, indent=2).encode())
