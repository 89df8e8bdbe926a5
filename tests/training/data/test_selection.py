"""A stage takes the clips that are large and long enough for it, and says what it leaves out and why."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.small_data import row, small_recipe, write_manifest
from training.data.buckets import Bucket, shape_of
from training.data.manifest import Manifest, ManifestError, open_manifest
from training.data.plan import BatchPlan, Job
from training.data.selection import select
from training.recipe import load_recipe

# lines and columns of the crop, aspect ratio, whole seconds, seconds
CLIPS = [
    ((120, 214), "16x9", 5, 5.0),
    ((240, 426), "16x9", 5, 4.6),
    ((432, 768), "16x9", 5, 5.2),
    ((720, 1280), "16x9", 3, 2.8),
    ((1080, 1920), "16x9", 3, 3.0),
    ((1280, 720), "9x16", 2, 1.6),
    ((480, 480), "1x1", 4, 4.0),
    ((240, 240), "1x1", 1, 0.3),
    ((120, 214), "16x9", 0, 0.0),
    ((720, 1280), "16x9", 0, 0.0),
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data")
    rows = [row(n, folder / "none.mp4", *clip) for n, clip in enumerate(CLIPS)]
    write_manifest(rows, folder / "manifest")
    return open_manifest([str(folder / "manifest")], folder / "cache")


def taken(manifest: Manifest, **changes: Any) -> set[int]:
    rows = select(manifest, small_recipe(**changes)).rows
    return {int(manifest.clip(int(n)).clip_id.removeprefix("clip-")) for own in rows.values() for n in own}


@pytest.mark.effect("Recipe.least_short_side")
def test_clips_of_fewer_lines_are_left_out_also_upright_ones_and_images(manifest: Manifest) -> None:
    assert taken(manifest) == {0, 1, 2, 3, 4, 5, 6, 8, 9}
    assert taken(manifest, least_short_side=240) == {1, 2, 3, 4, 5, 6, 9}
    assert taken(manifest, least_short_side=721) == {4}


@pytest.mark.effect("Recipe.least_duration_s")
def test_shorter_videos_are_left_out_and_images_are_not(manifest: Manifest) -> None:
    assert taken(manifest, least_duration_s=3.0) == {0, 1, 2, 4, 6, 8, 9}
    assert taken(manifest, least_duration_s=4.6) == {0, 1, 2, 8, 9}  # also one that has 4.6 s but for rounding


def test_a_clip_too_short_for_the_frames_of_its_bucket_is_left_out(manifest: Manifest) -> None:
    """Curation puts all that is shorter than 1.5 s into the bucket of 1 s, which holds clips from 0.5 s on."""
    assert select(manifest, small_recipe()).left_out == {
        Bucket(1, "1x1"): {"shorter than 0.5 s, too short for their bucket": 1}
    }


def test_what_is_left_out_is_counted_by_bucket_and_reason(manifest: Manifest) -> None:
    selection = select(manifest, load_recipe("stage3"))
    assert selection.left_out == {
        Bucket(0, "16x9"): {"smaller than 432 pixels at the shorter side": 1},
        Bucket(1, "1x1"): {"smaller than 432 pixels at the shorter side": 1},
        Bucket(2, "9x16"): {"shorter than 3 s": 1},
        Bucket(3, "16x9"): {"shorter than 3 s": 1},
        Bucket(5, "16x9"): {"smaller than 432 pixels at the shorter side": 2},
    }
    assert selection.reasons(videos=True) == {"smaller than 432 pixels at the shorter side": 3, "shorter than 3 s": 2}
    assert sum(map(len, selection.rows.values())) == len(CLIPS) - 6


@pytest.mark.parametrize("name", ["vae-adaptation", "stage1", "stage2", "stage3"])
def test_no_stage_of_the_report_blows_a_clip_up_by_more_than_a_third(manifest: Manifest, name: str) -> None:
    """Stage 3 would have trained on 120 lines that are blown up to 432."""
    recipe = load_recipe(name)
    rows = select(manifest, recipe).rows
    for bucket, own in rows.items():
        for number in own:
            clip, shape = manifest.clip(int(number)), shape_of(bucket, recipe)
            assert max(shape.height / clip.crop_h, shape.width / clip.crop_w) <= (4 / 3 if name == "stage3" else 1)


def test_steps_train_on_what_is_taken_alone(manifest: Manifest) -> None:
    recipe = small_recipe(least_short_side=432, least_duration_s=3.0)
    plan = BatchPlan(manifest, Job(recipe=recipe, seed=0, manifest=manifest.fingerprint))
    samples = [sample for step in range(plan.steps) for sample in plan.samples(step)]
    assert {sample.clip.clip_id for sample in samples} == {"clip-2", "clip-4", "clip-6", "clip-9"}
    with pytest.raises(IndexError, match="has 1 clips"):  # its neighbours of 120 and 240 lines are no replacement
        plan.replacement(next(sample for sample in samples if sample.clip.clip_id == "clip-2"), 1)


def test_a_recipe_that_leaves_nothing_says_why(manifest: Manifest) -> None:
    recipe = small_recipe(least_short_side=2000, least_duration_s=5.0)
    with pytest.raises(
        ManifestError,
        match=r"trains on images, .*none that it takes: 2 are smaller than 2000 pixels at the shorter side",
    ):
        BatchPlan(manifest, Job(recipe=recipe, seed=0, manifest=manifest.fingerprint))


def test_a_selection_does_not_change_the_manifests_fingerprint(manifest: Manifest, tmp_path: Path) -> None:
    before = manifest.fingerprint
    select(manifest, small_recipe(least_short_side=300))
    assert Manifest(manifest.folder).fingerprint == before
