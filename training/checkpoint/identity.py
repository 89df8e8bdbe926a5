"""The owner of an output: what stands there counts as this run's only if its facts say so.

OUT/checkpoints/step-*/facts.json   of each checkpoint
OUT/checkpoint/facts.json           of the result, and of every export
OUT/run.json                        written last, and removed first where the run goes on
OUT/samples/step-*/*.mp4            each video's own metadata names the run
"""

import json
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from media.digest import file_digest
from models.checkpoint import CheckpointError, network_folder
from training.checkpoint.checkpoints import last_checkpoint
from training.checkpoint.facts import changed_by_branch, check_facts, read_facts, run_digest
from training.checkpoint.names import step_folders
from training.distributed.weights import is_new

RESULT = "checkpoint"
RECORD = "run.json"


def starting_weights(checkpoint: str) -> str:
    """Names the weights that a run starts from: their size where they are new, else a hash of their files' content.

    OSError: the folder cannot be read.
    """
    if is_new(checkpoint):
        return f"new {checkpoint}"
    folder = network_folder(checkpoint)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    return sha256(" ".join(f"{path.name} {file_digest(path)}" for path in files).encode()).hexdigest()[:16]


def check_output(output: Path, facts: Mapping[str, Any]) -> None:
    """CheckpointError, with what to do, if the newest checkpoint or the result in ``output`` is not of this run.

    Args:
        facts: of the run, its model's size among them.
    """
    try:
        if newest := last_checkpoint(output / "checkpoints"):
            check_facts(read_facts(newest[1]), facts, f"checkpoint {newest[1]}")
        check_result(output / RESULT, facts)
    except CheckpointError as problem:
        raise CheckpointError(f"{problem}\nA run goes on from its own checkpoints: choose another output") from problem


def check_result(result: Path, facts: Mapping[str, Any]) -> None:
    """CheckpointError if a folder stands where the result of this run belongs, and is none."""
    if not result.exists():
        return
    there = read_facts(result)
    check_facts(there, facts, f"the export {result}")
    if there["step"] != steps_of(facts):
        raise CheckpointError(
            f"{result} is an export of step {there['step']}, and no result of a run of {steps_of(facts)} steps; "
            "move it away"
        )


def is_finished(output: Path) -> bool:
    """Whether the result of this run is there, in an output that ``check_output`` has passed."""
    return (output / RESULT).exists()


def begin(output: Path) -> None:
    """Remove what would stand in ``output`` under this run's name: a record, and samples of a run that begins anew.

    One rank calls it, of an output that ``check_output`` has passed, before anything is written there.
    """
    (output / RECORD).unlink(missing_ok=True)
    if last_checkpoint(output / "checkpoints") is None:
        for _, path in step_folders(output / "samples"):
            shutil.rmtree(path)
        (output / "lineage" / "branch.json").unlink(missing_ok=True)


def branch_record(checkpoint: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a run with these facts takes over from a checkpoint of another run, and changes.

    CheckpointError: it is no checkpoint, more differs than a branch may change, or no step would be left.
    """
    path = Path(checkpoint)
    there = read_facts(path)
    changed = changed_by_branch(there, facts, f"checkpoint {path}")
    if there["step"] >= steps_of(facts):
        raise CheckpointError(f"checkpoint {path} has {there['step']} steps, and the recipe no more: {steps_of(facts)}")
    return {"checkpoint": str(path.resolve()), "step": there["step"], "run": run_digest(there), "changed": changed}


def has_record(output: Path, facts: Mapping[str, Any]) -> bool:
    """Whether run.json is there and is of this run."""
    try:
        record = json.loads((output / RECORD).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("digest") == run_digest(facts)


def steps_of(facts: Mapping[str, Any]) -> int:
    """The steps of a run by its facts."""
    return sum(phase["steps"] for phase in facts["recipe"]["phases"])
