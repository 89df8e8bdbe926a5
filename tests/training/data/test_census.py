"""What a stage trains on, said before it begins."""

from pathlib import Path

import pytest

from tests.training.small_data import row, small_recipe, write_manifest
from training.data.buckets import Bucket
from training.data.census import BucketCount, census, described
from training.data.manifest import open_manifest
from training.data.plan import BatchPlan, Job
from training.recipe import Recipe


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    rows = [row(n, folder / "a.mp4", (16 * (n + 1), 16 * (n + 1)), "1x1", 2, 2.0) for n in range(4)]
    rows += [row(4, folder / "a.png", (160, 160), "1x1", 0, 0.0)]
    rows[1] |= {"caption_detailed": " \n"}
    rows[3] |= {"caption_short": ""}
    write_manifest(rows, folder / "manifest")
    write_manifest(rows[2:], folder / "again")
    return [str(folder / "manifest"), str(folder / "again")]


def plan(uris: list[str], recipe: Recipe, cache: Path) -> BatchPlan:
    manifest = open_manifest(uris, cache)
    return BatchPlan(manifest, Job(recipe=recipe, seed=0, manifest=manifest.fingerprint))


def test_each_bucket_is_counted(uris: list[str], tmp_path: Path) -> None:
    """Crops of 16, 32, 48 and 64 lines, made to 32: the first is blown up to twice its size."""
    assert census(plan(uris, small_recipe(), tmp_path)) == [
        BucketCount(Bucket(0, "1x1"), 1, {}, 0, 0, 1.0),
        BucketCount(Bucket(2, "1x1"), 4, {}, 1, 1, 2.0),
    ]
    larger = small_recipe(height=64, width=64, least_short_side=32)
    assert census(plan(uris, larger, tmp_path))[1] == BucketCount(
        Bucket(2, "1x1"), 3, {"smaller than 32 pixels at the shorter side": 1}, 1, 2, 2.0
    )


@pytest.mark.effect("Recipe.caption")
def test_the_recipes_caption_is_the_one_that_is_counted_and_trained_on(uris: list[str], tmp_path: Path) -> None:
    for name, blank in (("caption_detailed", "clip-1"), ("caption_short", "clip-3")):
        own = plan(uris, small_recipe(caption=name, caption_drop=0), tmp_path)
        samples = [sample for step in range(own.steps) for sample in own.samples(step)]
        assert census(own)[1].without_caption == 1
        assert all(sample.caption == getattr(sample.clip, name) for sample in samples)
        assert {sample.clip.clip_id for sample in samples if not sample.caption.strip()} == {blank}


def test_what_a_user_should_know_is_said_in_words(uris: list[str], tmp_path: Path) -> None:
    recipe = small_recipe(height=64, width=64, least_short_side=32)
    assert described(plan(uris, recipe, tmp_path)).splitlines() == [
        "  clips: 4 (1x1 image 1, 1x1 2 s 3)",
        "  counted once: 3 rows repeat a clip of another row",
        "  left out, smaller than 32 pixels at the shorter side: 1 (1x1 2 s 1)",
        "  without a word of caption_detailed: 1 clips, which teach guidance alone",
        "  blown up to their shape: 2 clips (1x1 2 s 2 by up to 2.00)",
    ]


def test_only_what_the_phases_draw_from_is_counted(uris: list[str], tmp_path: Path) -> None:
    recipe = small_recipe(phases=[{"data": "images", "steps": 4}])
    assert [each.bucket for each in census(plan(uris, recipe, tmp_path))] == [Bucket(0, "1x1")]
