"""What sample videos are of: a bucket that the recipe trains on, and captions that say something."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.small_data import row, small_recipe, small_run, write_manifest
from training.checkpoint.checkpoints import State
from training.checkpoint.ema import Ema
from training.data.buckets import Bucket
from training.data.manifest import Manifest, open_manifest
from training.data.selection import select
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.distributed.parallel import start
from training.distributed.prepare import prepare
from training.encode.encoder import load_encoder
from training.observe.samples import Sampler, sampled_bucket
from training.run import RecordConfig


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data")
    clips = [("16x9", 2, 48)] * 3 + [("9x16", 5, 48)] * 2 + [("1x1", 5, 48)] + [("1x1", 0, 48)] * 4 + [("3x2", 6, 16)]
    rows = [row(n, folder / "a.mp4", (lines, 48), *kind, float(kind[1])) for n, (*kind, lines) in enumerate(clips)]
    write_manifest(rows, folder / "manifest")
    return open_manifest([str(folder / "manifest")], folder / "cache")


IMAGES = [{"data": "images", "steps": 4}]


@pytest.mark.parametrize(
    ("changes", "bucket"),
    [
        ({"frames": 125}, Bucket(6, "3x2")),
        ({"frames": 125, "least_short_side": 32}, Bucket(5, "9x16")),
        ({"frames": 13}, Bucket(2, "16x9")),
        ({"frames": 1, "phases": IMAGES}, Bucket(0, "1x1")),
        ({"frames": 9, "phases": IMAGES}, Bucket(0, "1x1")),  # passed preflight and failed before the first step
    ],
)
def test_samples_have_the_shape_of_most_of_the_longest_that_are_trained_on(
    manifest: Manifest, changes: dict[str, Any], bucket: Bucket
) -> None:
    recipe = small_recipe(**changes)
    assert sampled_bucket(select(manifest, recipe).rows, recipe) == bucket


@pytest.mark.effect("RecordConfig.sample_count")
@pytest.mark.effect("RecordConfig.prompts")
def test_prompts_are_captions_that_are_trained_on_unless_the_run_gives_some(manifest: Manifest, tmp_path: Path) -> None:
    def prompts(**changes: Any) -> list[str]:
        recipe, parallel = small_recipe(frames=13), start(Layout(), "cpu")
        config = RecordConfig.model_validate(changes)
        run = small_run("unused", tmp_path, recipe=recipe, record=config)
        (tmp_path / "samples").mkdir(exist_ok=True)
        return Sampler(run, "digest", manifest, parallel, load_encoder(None, recipe).embed).prompts

    captions = [f"a square number {n} that moves" for n in range(3)]
    assert prompts(sample_count=2) == captions[:2]
    assert prompts(sample_count=4) == captions
    assert prompts(prompts=["a cat"], sample_count=4) == ["a cat"]


@pytest.mark.effect("RecordConfig.sample_steps")
@pytest.mark.effect("RecordConfig.sample_guidance")
@pytest.mark.effect("RecordConfig.sample_shift")
def test_steps_guidance_and_shift_of_the_config_are_those_of_the_videos(manifest: Manifest, tmp_path: Path) -> None:
    parallel = start(Layout(), "cpu")
    model = prepare("tiny", MachineConfig(), parallel, seed=0)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):  # new weights answer nothing at all
            parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(number))
    state = State(model, Ema(model, 0.5), torch.optim.AdamW(model.parameters()))
    passes: list[int] = []
    model.norm_out.register_forward_hook(lambda *_: passes.append(1))

    def made(name: str, **changes: Any) -> tuple[int, bytes]:
        """How many passes through the model a video takes, and its file."""
        config = RecordConfig.model_validate({"prompts": ["a cat"], "sample_steps": 2} | changes)
        run = small_run("unused", tmp_path / name, recipe=small_recipe(frames=5), record=config)
        (run.folder / "samples").mkdir(parents=True)
        sampler = Sampler(run, "digest", manifest, parallel, load_encoder(None, run.recipe).embed)
        passes.clear()
        sampler(state, 3)
        (video,) = run.folder.rglob("*.mp4")
        return len(passes), video.read_bytes()

    count, video = made("plain")
    assert (count, made("again")) == (4, (count, video))  # guidance takes two passes a step
    assert made("steps", sample_steps=3)[0] == 6
    assert made("unguided", sample_guidance=1.0)[0] == 2
    assert made("guidance", sample_guidance=3.0)[1] != video
    assert made("shift", sample_shift=1.0)[1] != video
