"""Every field of a recipe does something: two values of it, and what differs in the batches or in what is learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.video_file import read_generation_metadata
from tests.training.small_data import small_recipe, small_run, write_data
from training.data.buckets import Shape
from training.data.clips import read_clip
from training.data.manifest import Manifest, open_manifest
from training.data.plan import BatchPlan, Job
from training.loader import draws
from training.main import train_run
from training.recipe import Recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def manifest(data: str, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return open_manifest([data], tmp_path_factory.mktemp("cache"))


def planned(manifest: Manifest, **changes: Any) -> BatchPlan:
    return BatchPlan(manifest, Job(recipe=small_recipe(**changes), seed=0, manifest=manifest.fingerprint))


def sizes(plan: BatchPlan) -> list[int]:
    return [len(plan.samples(step)) for step in range(plan.steps)]


@pytest.mark.effect("Recipe.frames")
@pytest.mark.effect("Recipe.height")
@pytest.mark.effect("Recipe.width")
def test_frames_height_and_width_are_those_of_the_largest_shape(manifest: Manifest) -> None:
    def shapes(**changes: int) -> set[str]:
        plan = planned(manifest, **changes)
        return {str(sample.shape) for step in range(plan.steps) for sample in plan.samples(step)}

    plain = shapes()
    assert all(shape.startswith(("1x", "9x")) for shape in plain)
    assert any(shape.startswith("33x") for shape in shapes(frames=33))
    assert shapes(height=64).isdisjoint(plain) and shapes(width=64).isdisjoint(plain)


@pytest.mark.effect("Recipe.image_batch")
@pytest.mark.effect("Recipe.video_batch")
def test_batches_are_the_samples_of_a_step(manifest: Manifest) -> None:
    assert sizes(planned(manifest, image_batch=8, video_batch=2)) == [2] * 6 + [2, 8] * 3
    assert sizes(planned(manifest, image_batch=2, video_batch=6)) == [6] * 6 + [6, 2] * 3


@pytest.mark.effect("Recipe.phases")
@pytest.mark.effect("Phase.data")
@pytest.mark.effect("Phase.steps")
def test_phases_say_what_how_many_steps_train_on(manifest: Manifest) -> None:
    def images(*phases: tuple[str, int]) -> list[bool]:
        fields = [{"data": data, "steps": steps} for data, steps in phases]
        plan = planned(manifest, phases=fields, warmup_steps=0)
        return [plan.samples(step)[0].bucket.duration_s == 0 for step in range(plan.steps)]

    assert images(("videos", 2)) == [False] * 2
    assert images(("videos", 1), ("images", 3)) == [False, True, True, True]
    assert images(("balanced", 4)) == [False, True] * 2


@pytest.mark.effect("Recipe.fps")
def test_the_frame_rate_is_that_of_what_is_read_and_how_long_a_clip_must_be(manifest: Manifest) -> None:
    fast, slow = (planned(manifest, fps=fps, frames=33) for fps in (24, 12))
    longest = [max(s.shape.frames for step in range(p.steps) for s in p.samples(step)) for p in (fast, slow)]
    assert longest == [33, 17]
    clip, shape = fast.samples(0)[0].clip, Shape(5, 32, 32)
    at_24, at_12 = (read_clip(clip, shape, plan.job.recipe.fps) for plan in (fast, slow))
    assert torch.equal(at_24[:1], at_12[:1]) and not torch.equal(at_24[1:], at_12[1:])


@pytest.mark.effect("Recipe.caption_drop")
def test_captions_are_dropped_for_guidance(manifest: Manifest) -> None:
    def dropped(share: float) -> int:
        plan = planned(manifest, caption_drop=share)
        return sum(not sample.caption for step in range(plan.steps) for sample in plan.samples(step))

    assert dropped(0) == 0 < dropped(0.5) < dropped(1) == 12 * 4


@pytest.mark.effect("Recipe.flow_shift")
def test_a_larger_shift_trains_on_more_noise(manifest: Manifest) -> None:
    sample = planned(manifest).samples(0)[0]
    (plain, _), (shifted, _) = (draws(sample, small_recipe(flow_shift=shift)) for shift in (1.0, 5.0))
    assert shifted > plain


@pytest.fixture(scope="module")
def learned(data: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Recipe, Path]]:
    """Trains three steps by a recipe with changes; returns it and what is left."""

    def run(**changes: Any) -> tuple[Recipe, Path]:
        recipe = small_recipe(phases=[{"data": "videos", "steps": 3}], warmup_steps=1).model_copy(update=changes)
        own = small_run(data, tmp_path_factory.mktemp("run"), recipe=recipe)
        assert train_run(own, lambda: False) == 3
        return recipe, own.folder

    return run


def exported(folder: Path) -> torch.Tensor:
    tensors = load_file(folder / "checkpoint" / "transformer" / "diffusion_pytorch_model.safetensors")
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


@pytest.fixture(scope="module")
def plain(learned: Callable[..., tuple[Recipe, Path]]) -> torch.Tensor:
    return exported(learned()[1])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"learning_rate": 2e-3}, marks=pytest.mark.effect("Recipe.learning_rate"), id="learning_rate"),
        pytest.param({"warmup_steps": 2}, marks=pytest.mark.effect("Recipe.warmup_steps"), id="warmup_steps"),
        pytest.param({"clip_norm": 1e-3}, marks=pytest.mark.effect("Recipe.clip_norm"), id="clip_norm"),
        pytest.param({"weight_decay": 0.5}, marks=pytest.mark.effect("Recipe.weight_decay"), id="weight_decay"),
        pytest.param({"betas": (0.5, 0.9)}, marks=pytest.mark.effect("Recipe.betas"), id="betas"),
        pytest.param({"ema_decay": 0.5}, marks=pytest.mark.effect("Recipe.ema_decay"), id="ema_decay"),
    ],
)
def test_other_values_learn_other_weights(
    change: dict[str, Any], learned: Callable[..., tuple[Recipe, Path]], plain: torch.Tensor
) -> None:
    assert not torch.equal(exported(learned(**change)[1]), plain)


@pytest.mark.effect("Recipe.name")
def test_the_name_is_in_the_sample_videos(learned: Callable[..., tuple[Recipe, Path]], plain: torch.Tensor) -> None:
    recipe, folder = learned(name="another")
    assert torch.equal(exported(folder), plain)
    made = next((folder / "samples").glob("*/*.mp4"))
    assert read_generation_metadata(str(made)).config["recipe"] == recipe.name == "another"
