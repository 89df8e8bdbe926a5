"""Pre-training (report, section 5.3): the image model gets used to the video VAE, then three stages of video.

    vae-adaptation - stage1 (low resolution, short) - stage2 (low resolution, long) - stage3 (high resolution, long)

Each stage is a flow of its own, which starts from the checkpoint of the one before:

    preflight - train (ranks under torchrun, or Ray Train) - samples
                                                          - export

``train`` is one task while the ranks run, which make the sample videos and export the result themselves. The two tasks
after it look at what they left: the videos of the last step, and a checkpoint that the next stage can start from.

A run that failed or was stopped goes on from its last checkpoint when it is started again with the same output.
"""

from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.flows import Flow
from pydantic import BaseModel, Field

from flows.training_artifacts import TrainingArtifacts, show_last_samples, show_result
from training.launch.listener import Listener, Outcome
from training.launch.local import launch
from training.launch.preflight import preflight
from training.launch.ray import launch_on_ray
from training.recipe import load_recipe
from training.run import EncodeConfig, MachineConfig, RecordConfig, TrainingRun

Launcher = Literal["local", "ray"]
Count = Annotated[int, Field(gt=0)]
Times = Annotated[int, Field(ge=0)]


class TrainingStopped(Exception):
    """The ranks were told to stop, not by this flow, and did so; the message says where."""


class Launch(BaseModel):
    """How the ranks are started: by which launcher, how many, and how often again after failures in a row."""

    launcher: Launcher
    ray_address: str | None
    processes: int
    restarts: int


@task(name="preflight", task_run_name="preflight", cache_policy=NO_CACHE, persist_result=False)
def check(run: TrainingRun, processes: int) -> str:
    """Fail before any work where the run cannot go well, or show its plan."""
    plan = preflight(run, processes)
    get_run_logger().info("%s", plan)
    create_markdown_artifact(f"```text\n{plan}\n```", key="training-plan", description="What is trained, on what")
    return plan


@task(name="train", task_run_name="train", cache_policy=NO_CACHE, persist_result=False)
def train_ranks(run: TrainingRun, how: Launch) -> Outcome:
    """Train until the last step, and show progress meanwhile. TrainingStopped: another told the ranks to stop."""
    log = get_run_logger()
    shown = TrainingArtifacts(run, log)
    listener = Listener(on_line=log.info, on_metrics=shown.add, on_poll=shown.refresh)
    try:
        if how.launcher == "ray":
            outcome = launch_on_ray(run, how.processes, listener, restarts=how.restarts, address=how.ray_address)
        else:
            outcome = launch(run, how.processes, listener, restarts=how.restarts)
    finally:
        shown.refresh(now=True)
    if outcome.stopped:
        raise TrainingStopped(f"{outcome.stopped}; start the run again to go on from there")
    return outcome


@task(name="samples", task_run_name="samples", cache_policy=NO_CACHE, persist_result=False)
def samples(run: TrainingRun) -> list[str]:
    """Show the sample videos of the last step. FileNotFoundError: the ranks have left none."""
    return show_last_samples(run)


@task(name="export", task_run_name="export", cache_policy=NO_CACHE, persist_result=False)
def export(run: TrainingRun) -> str:
    """The folder of the result, once it has passed the checks of a checkpoint that a stage starts from."""
    return show_result(run)


def stage(name: str) -> Flow[..., str]:
    """The flow that trains with one of the project's recipes."""

    @flow(name=f"train-{name}", flow_run_name="train {recipe} {output}")
    def train(
        manifests: list[str],
        checkpoint: str,
        output: str,
        recipe: str = name,
        recipe_changes: dict[str, Any] | None = None,
        seed: int = 0,
        launcher: Launcher = "local",
        ray_address: str | None = None,
        processes: Count = 1,
        restarts: Times = 3,
        machine: MachineConfig = MachineConfig(),
        encode: EncodeConfig = EncodeConfig(),
        record: RecordConfig = RecordConfig(),
        branch_from: str | None = None,
    ) -> str:
        """Train a stage of ContentV; returns the folder of its checkpoint, which the next stage starts from.

        Args:
            manifests: Folders or buckets that curate-videos wrote, OUT/manifest.
            checkpoint: Folder in the diffusers layout to start from; or tiny, or 8b: new weights of that size.
            output: Folder for checkpoints, metrics, sample videos and the result. A run is continued from there.
            recipe: Name of a recipe of the project, or path of a YAML file.
            recipe_changes: Fields of the recipe that are other than in it, such as {"learning_rate": 5e-5}.
            seed: Of the order of samples, their noise and new weights.
            launcher: local: ranks on this machine, by torchrun; ray: workers of a Ray cluster, by Ray Train.
            ray_address: Address of the Ray cluster, as ray://host:port; empty: RAY_ADDRESS, or a new local one.
            processes: Ranks: one for each device.
            restarts: How often in a row to start again from the last checkpoint after a rank failed; a new checkpoint
                begins the count anew.
            machine: Devices, and how they share the work. What is learned does not depend on it.
            encode: Where clips and captions are encoded.
            record: How often to log, save and sample.
            branch_from: A checkpoint of another run, its OUT/checkpoints/step-..., to go on from in this output, with
                another learning rate, warm-up or clipping, or more steps.
        """
        run = TrainingRun(
            recipe=load_recipe(recipe, **recipe_changes or {}),
            manifests=tuple(manifests),
            checkpoint=checkpoint,
            output=output,
            seed=seed,
            machine=machine,
            encode=encode,
            record=record,
            branch_from=branch_from,
        )
        plan = check(run, processes)
        how = Launch(launcher=launcher, ray_address=ray_address, processes=processes, restarts=restarts)
        trained = train_ranks(run, how, wait_for=[plan])
        samples(run, wait_for=[trained])
        return export(run, wait_for=[trained])

    return train


train_vae_adaptation = stage("vae-adaptation")
train_stage1 = stage("stage1")
train_stage2 = stage("stage2")
train_stage3 = stage("stage3")
