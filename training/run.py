"""A run of training: a recipe, what it trains on, and how this machine or cluster does it, as one JSON file."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from media.paths import UnusablePath, path_of_uri
from training.distributed.machine import MachineConfig
from training.recipe import Recipe, Seed

Positive = Annotated[int, Field(gt=0)]


def local_path(path: str) -> str:
    """A path of this machine: ``~`` and ``file://`` are read as such, and a plain path is left as it is.

    ValueError: it is in an object store or another place that is no folder of this machine.
    """
    if not (path.startswith("~") or "://" in path):
        return path
    try:
        return path_of_uri(path)
    except UnusablePath as problem:
        raise ValueError(
            f"{problem}; training reads and writes folders of this machine: give one, or one where the store is mounted"
        ) from problem


LocalPath = Annotated[str, AfterValidator(local_path)]


class EncodeConfig(BaseModel):
    """Where clips become latents and text becomes embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    servers: tuple[str, ...] = Field((), description="grpc://host:port of encode servers; none: in the trainer itself")
    token_file: LocalPath | None = Field(
        None, description="File with the servers' token; servers on loopback may have none"
    )
    buffer_gb: float = Field(4.0, gt=0, description="Most that a data rank's buffer of batches holds ahead of training")
    buffer_folder: LocalPath | None = Field(
        None, description="Where the buffers are: a local disk; empty: shared memory"
    )
    most_bad_clips: float = Field(0.01, ge=0, le=1, description="Share of samples whose clips may not be readable")
    patience_s: float = Field(600.0, gt=0, description="How long no server may answer before the run fails")


class RecordConfig(BaseModel):
    """What a run leaves, and how often."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    log_every: Positive = Field(10, description="Steps between two lines of metrics, the only waits for the device")
    save_every: Positive = Field(500, description="Steps between two checkpoints")
    keep_last: Positive = Field(2, description="Checkpoints that stay, the newest")
    keep_best: int = Field(1, ge=0, description="Checkpoints that stay besides, with the lowest loss since the last")
    sample_every: int = Field(0, ge=0, description="Steps between two rounds of sample videos; 0: only after the last")
    prompts: tuple[str, ...] = Field((), description="Of the sample videos; empty: captions of the manifest")
    sample_count: Positive = Field(4, description="Sample videos in a round, where no prompts are given")
    sample_steps: Positive = Field(50, description="Euler steps of a sample video")
    sample_guidance: float = Field(6.0, ge=0, description="Classifier-free guidance of the sample videos")
    sample_shift: float = Field(17.0, gt=0, description="Flow shift of the sample videos")


class TrainingRun(BaseModel):
    """All that ``python -m training.main RUN.json`` needs; ranks and their number come from the launcher."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe: Recipe
    manifests: tuple[str, ...]
    checkpoint: LocalPath
    output: LocalPath
    branch_from: LocalPath | None = Field(
        None, description="A checkpoint step-... of another run to go on from, with another learning rate or more steps"
    )
    seed: Seed = 0
    machine: MachineConfig = MachineConfig()
    encode: EncodeConfig = EncodeConfig()
    record: RecordConfig = RecordConfig()

    @property
    def folder(self) -> Path:
        return Path(self.output)


def facts_of(run: TrainingRun, manifest: str, weights: str, encoder: str) -> dict[str, Any]:
    """What makes it this run and no other, for its checkpoints and its result.

    Args:
        manifest, weights, encoder: fingerprints of its manifests, of the weights it starts from, of what encodes.
    """
    return {
        "recipe": run.recipe.model_dump(mode="json"),
        "seed": run.seed,
        "manifest": manifest,
        "weights": weights,
        "encoder": encoder,
        "branch_from": run.branch_from,
    }
