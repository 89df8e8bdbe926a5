"""A step's samples in parts: as large as a device takes, of one shape each, and as many on all ranks."""

from collections import Counter
from typing import Any

import pytest

from tests.training.small_data import row, write_manifest
from training.data.buckets import ASPECTS, Bucket, Shape
from training.data.manifest import Manifest, open_manifest
from training.data.parts import divided, number_of_parts, parts
from training.data.plan import BatchPlan, Job
from training.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Every aspect ratio as image and for 3 to 6 s, each with clips of a stage 3 size."""
    folder = tmp_path_factory.mktemp("data")
    buckets = [(aspect, seconds) for aspect in ASPECTS for seconds in (0, 3, 4, 5, 6)]
    rows = [row(n, folder / "none.mp4", (720, 720), aspect, s, float(s)) for n, (aspect, s) in enumerate(buckets * 3)]
    write_manifest(rows, folder / "manifest")
    return open_manifest([str(folder / "manifest")], folder / "cache")


def planned(manifest: Manifest, recipe: Recipe) -> BatchPlan:
    return BatchPlan(manifest, Job(recipe=recipe, seed=0, manifest=manifest.fingerprint))


def recipe(name: str, **changes: Any) -> Recipe:
    phases = [{"data": "videos", "steps": 3}, {"data": "balanced", "steps": 2}]
    return load_recipe(name, phases=phases, warmup_steps=0, **changes)


@pytest.mark.parametrize(("name", "images", "videos"), [("stage1", 128, 64), ("stage2", 128, 16), ("stage3", 64, 8)])
def test_a_device_takes_a_ranks_whole_share_at_once_where_memory_allows_it(
    manifest: Manifest, name: str, images: int, videos: int
) -> None:
    """On the report's 32 data ranks each takes one bucket: runs of 8 made 16 parts of a step of 128 images."""
    plan = planned(manifest, recipe(name))
    for step in (0, 4):
        own = parts(plan, step, data_rank=5, data_ranks=32, at_once=dict.fromkeys((1, 29, 57, 81, 105, 125), 128))
        assert list(map(len, own)) == [images if step == 4 else videos]
        assert len({sample.bucket for sample in own[0]}) == 1


@pytest.mark.effect("Recipe.bucket_run")
def test_a_run_is_of_one_bucket_and_a_step_of_several(manifest: Manifest) -> None:
    def buckets(run: int | None) -> list[Bucket]:
        return [
            sample.bucket for sample in planned(manifest, recipe("stage2", video_batch=4096, bucket_run=run)).samples(4)
        ]

    for run in (256, 1024):
        found = buckets(run)
        assert all(len(set(found[first : first + run])) == 1 for first in range(0, len(found), run))
    assert len(set(buckets(4096))) == 1 < len(set(buckets(256)))
    assert buckets(None) == buckets(128)


def test_equal_shapes_are_put_together_also_of_different_buckets(manifest: Manifest) -> None:
    """In stage 1 clips of 3 and of 6 s have the same 29 frames; one rank of all takes seven shapes, not 32 runs."""
    plan = planned(manifest, recipe("stage1"))
    own = parts(plan, 0, 0, 1, {29: 2048})
    assert len(own) == len({sample.shape for sample in plan.samples(0)}) <= len(ASPECTS)
    assert any(len({sample.bucket.duration_s for sample in part}) > 1 for part in own)


@pytest.mark.parametrize("ranks", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("at_once", [1, 3, 5, 64])
def test_all_ranks_make_as_many_parts_and_no_more_than_one_of_them_needs(
    manifest: Manifest, ranks: int, at_once: int
) -> None:
    plan = planned(manifest, recipe("stage2", video_batch=64, image_batch=64, bucket_run=2))
    for step in (0, 4):
        most = dict.fromkeys((1, 57, 81, 105, 125), at_once)
        divided = [parts(plan, step, rank, ranks, most) for rank in range(ranks)]
        assert len({len(own) for own in divided}) == 1
        needed = [Counter(s.shape for s in plan.samples(step, rank, ranks)) for rank in range(ranks)]
        assert len(divided[0]) == max(sum(-(-n // at_once) for n in shapes.values()) for shapes in needed)
        for rank, own in enumerate(divided):
            assert all(0 < len(part) <= at_once and len({s.shape for s in part}) == 1 for part in own)
            found = sorted((s for part in own for s in part), key=lambda s: s.index)
            assert found == plan.samples(step, rank, ranks)


def test_ranks_need_not_have_whole_runs(manifest: Manifest) -> None:
    plan = planned(manifest, recipe("stage2", video_batch=96, image_batch=96, bucket_run=32))
    plan.check_ranks(12)
    shares = [plan.samples(0, rank, 12) for rank in range(12)]
    assert [sample for share in shares for sample in share] == plan.samples(0)
    assert len({len(parts(plan, 0, rank, 12, dict.fromkeys((57, 81, 105, 125), 8))) for rank in range(12)}) == 1


def test_the_largest_parts_are_cut_first() -> None:
    assert divided([8, 3], most=8, count=2) == [1, 1]
    assert divided([8, 3], most=8, count=4) == [3, 1]
    assert divided([8, 3], most=2, count=6) == [4, 2]
    assert divided([1, 1, 2], most=2, count=4) == [1, 1, 2]


def test_a_rank_of_two_shapes_makes_the_others_take_two_parts() -> None:
    wide, tall = Shape(5, 48, 80), Shape(5, 80, 48)
    assert number_of_parts([wide, wide, wide, tall], run=1, data_ranks=2, most=2) == 2
    assert number_of_parts([wide, tall], run=2, data_ranks=2, most=2) == 1
