"""What a training run shows in the Prefect UI while it runs: progress, the loss, the latest numbers, sample videos."""

import base64
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from models.flops import parameters
from tasks.pages.gallery import poster
from tasks.tables.run_record import ProgressArtifact
from training.checkpoint.names import step_folders
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.launch.preflight import check_start
from training.observe.loss_curve import loss_curve
from training.observe.progress import History, MetricsLine, as_table
from training.run import TrainingRun

EVERY_S = 5.0
SHOWN = 12  # sample videos in an artifact
POSTER_SIDE = 240


class LiveArtifact:
    """An artifact of the flow run that is made, by ``make``, when there is something to show, and then changed."""

    def __init__(self, make: Callable[[str], object]) -> None:
        self._make = make
        self._id: UUID | None = None
        self._data: str | None = None

    def show(self, data: str) -> None:
        if data == self._data:
            return
        if self._id is None:
            made = self._make(data)
            self._id = made if isinstance(made, UUID) else None
        else:
            with get_client(sync_client=True) as client:
                client.update_artifact(self._id, ArtifactUpdate(data=data))
        self._data = data


def markdown(key: str, description: str) -> LiveArtifact:
    return LiveArtifact(lambda data: create_markdown_artifact(data, key=key, description=description))


def table(key: str, description: str) -> LiveArtifact:
    """Shows rows as JSON."""
    return LiveArtifact(lambda data: create_table_artifact(json.loads(data), key=key, description=description))


class TrainingArtifacts:
    """Artifacts of one training run, refreshed at most every ``EVERY_S``.

    A Prefect server that does not answer is a warning and no more: the next refresh shows everything again.
    """

    def __init__(self, run: TrainingRun, log: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._run, self._log = run, log
        self._history, self._shown_s = History(), 0.0
        self._progress = ProgressArtifact("training-progress", "Steps trained", every_s=0)
        self._loss = markdown("training-loss", f"Loss of {run.recipe.name}, and smoothed")
        self._numbers = table("training-metrics", "Latest numbers")
        self._samples: dict[Path, LiveArtifact] = {}

    def add(self, metrics: MetricsLine) -> None:
        self._history.add(metrics)

    def refresh(self, now: bool = False) -> None:
        """Show what is new, if it is time to, or ``now``."""
        if not now and time.monotonic() - self._shown_s < EVERY_S:
            return
        try:
            self._show()
        except httpx.HTTPError as problem:
            self._log.warning("the Prefect server was not told of progress: %s", problem)
        self._shown_s = time.monotonic()

    def _show(self) -> None:
        for step, folder in sorted(step_folders(self._run.folder / "samples")):
            if step < self._run.recipe.steps:  # those of the last step are shown by the task that is theirs
                self._show_samples(step, folder)
        lines = self._history.lines
        if not lines:
            return
        steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
        self._loss.show(f"![loss]({data_uri('image/svg+xml', loss_curve(steps, losses, self._title()))})")
        self._numbers.show(json.dumps(as_table(lines[-1])))
        self._progress(lines[-1]["step"], lines[-1]["steps"])

    def _title(self) -> str:
        last = self._history.lines[-1]
        return f"{self._run.recipe.name}: loss {last['loss']:.4f} at step {last['step']} of {last['steps']}"

    def _show_samples(self, step: int, folder: Path) -> None:
        videos = sorted(folder.glob("*.mp4"))
        if not videos:
            return
        if folder not in self._samples:
            self._samples[folder] = markdown("training-samples", f"Sample videos after step {step}")
        self._samples[folder].show(gallery(videos))


def last_samples(run: TrainingRun) -> Path:
    """The folder of the sample videos that are made after the last step."""
    return run.folder / "samples" / f"step-{run.recipe.steps:08d}"


def show_last_samples(run: TrainingRun) -> list[str]:
    """Show the sample videos of the last step; returns their paths. FileNotFoundError: there are none."""
    videos = sorted(last_samples(run).glob("*.mp4"))
    if not videos:
        raise FileNotFoundError(f"training ended without sample videos in {last_samples(run)}")
    markdown("training-samples", f"Sample videos after step {run.recipe.steps}").show(gallery(videos))
    return [str(video) for video in videos]


def show_result(run: TrainingRun) -> str:
    """Show the run's result; returns its folder. ValueError or FileNotFoundError: no stage could start from it."""
    folder = run.folder / "checkpoint"
    there = run.model_copy(update={"checkpoint": str(folder), "machine": MachineConfig()})
    config = check_start(there, Layout()).config
    lines = [f"`{folder}`", "", f"{parameters(config):,} parameters, averaged over the steps of {run.recipe.name}."]
    markdown("training-result", "The checkpoint, which the next stage starts from").show("\n".join(lines))
    return str(folder)


def gallery(videos: list[Path]) -> str:
    """Videos as Markdown: their middle frames, and links to the files."""
    cells = [
        f"![]({poster(str(video), POSTER_SIDE)})<br>[{video.name}]({video.resolve().as_uri()})" for video in videos
    ]
    rows = [cells[first : first + 3] for first in range(0, min(len(cells), SHOWN), 3)]
    lines = ["| | | |", "|---|---|---|", *("| " + " | ".join(row + [""] * (3 - len(row))) + " |" for row in rows)]
    return "\n".join(lines)


def data_uri(kind: str, content: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.encode()).decode()}"
