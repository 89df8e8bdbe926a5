"""Which clips a step trains on: the same for any number of ranks, all of them, and of one cost at a time."""

import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.small_data import row, small_recipe, write_manifest
from training.data.buckets import Bucket
from training.data.manifest import Manifest, ManifestError, open_manifest
from training.data.plan import BatchPlan, CostClass, Job, Sample, quotas
from training.recipe import Recipe

# clips of each bucket: one has a single clip, far less than a batch
SIZES = {("16x9", 3): 40, ("9x16", 3): 1, ("16x9", 5): 23, ("1x1", 5): 6, ("16x9", 0): 17}
RECIPE = small_recipe(
    frames=125,
    video_batch=8,
    image_batch=16,
    bucket_run=4,
    phases=[{"data": "videos", "steps": 60}, {"data": "balanced", "steps": 40}],
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for (aspect, seconds), count in SIZES.items():
        first = len(rows)
        rows += [row(first + n, folder / "none.mp4", (48, 80), aspect, seconds, float(seconds)) for n in range(count)]
    write_manifest(rows, folder / "manifest")
    return open_manifest([str(folder / "manifest")], folder / "cache")


def planned(manifest: Manifest, recipe: Recipe = RECIPE, seed: int = 0) -> BatchPlan:
    return BatchPlan(manifest, Job(recipe=recipe, seed=seed, manifest=manifest.fingerprint))


def ids(samples: list[Sample]) -> list[str]:
    return [sample.clip.clip_id for sample in samples]


def test_phases_decide_between_images_and_videos(manifest: Manifest) -> None:
    plan = planned(manifest)
    kinds = [plan.samples(step)[0].bucket.duration_s > 0 for step in range(plan.steps)]
    assert all(kinds[:60])
    assert kinds[60:] == [True, False] * 20
    assert [plan.batch_size(step) for step in (0, 60, 61)] == [8, 8, 16]


def test_a_step_is_of_one_cost_on_all_ranks(manifest: Manifest) -> None:
    plan = planned(manifest)
    for step in range(plan.steps):
        frames = {sample.shape.frames for rank in range(4) for sample in plan.samples(step, rank, 4)}
        assert len(frames) == 1, step


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_share_the_batch_that_one_rank_would_have(manifest: Manifest, ranks: int) -> None:
    plan = planned(manifest)
    for step in (0, 7, 61, 99):
        parts = [plan.samples(step, rank, ranks) for rank in range(ranks)]
        assert len({len(part) for part in parts}) == 1
        assert [sample for part in parts for sample in part] == plan.samples(step)


def test_runs_are_of_one_bucket(manifest: Manifest) -> None:
    plan = planned(manifest)
    for step in range(plan.steps):
        buckets = [sample.bucket for sample in plan.samples(step)]
        for first in range(0, len(buckets), 4):
            assert len(set(buckets[first : first + 4])) == 1


def test_no_clip_is_left_out_and_none_is_favoured(manifest: Manifest) -> None:
    recipe = small_recipe(frames=125, video_batch=8, bucket_run=4, phases=[{"data": "videos", "steps": 500}])
    plan = planned(manifest, recipe)
    seen = Counter(clip for step in range(plan.steps) for clip in ids(plan.samples(step)))
    assert len(seen) == 70  # every video, also the bucket's only one
    large = [seen[f"clip-{n}"] for n in range(40)]
    assert max(large) - min(large) <= 3  # they differ by an epoch, and what filled up a bucket's last run
    assert seen["clip-40"] >= np.mean(large)  # the single one fills its run of four by itself


def test_two_plans_agree_and_another_seed_does_not(manifest: Manifest) -> None:
    plan, same, other = planned(manifest), planned(manifest), planned(manifest, seed=1)
    assert [plan.samples(step) for step in (99, 3)] == [same.samples(step) for step in (99, 3)]
    assert any(ids(plan.samples(step)) != ids(other.samples(step)) for step in range(5))


def test_every_sample_has_a_seed_of_its_own(manifest: Manifest) -> None:
    """Ranks with one seed, or a seed that comes back, cost convergence."""
    plan = planned(manifest)
    seeds = [sample.seed for step in range(plan.steps) for sample in plan.samples(step)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_captions_are_dropped_as_often_as_the_recipe_says(manifest: Manifest) -> None:
    recipe = RECIPE.model_copy(update={"caption_drop": 0.25})
    plan = planned(manifest, recipe)
    captions = [sample.caption for step in range(plan.steps) for sample in plan.samples(step)]
    assert np.mean([not caption for caption in captions]) == pytest.approx(0.25, abs=0.05)
    kept = [sample for sample in plan.samples(0) if sample.caption]
    assert all(sample.caption == sample.clip.caption_detailed for sample in kept)


def test_an_epoch_takes_every_clip_once_before_any_comes_again() -> None:
    sizes = {Bucket(5, "16x9"): 12, Bucket(5, "1x1"): 8, Bucket(5, "9x16"): 4}
    rows = {bucket: np.arange(size) + 100 * number for number, (bucket, size) in enumerate(sizes.items())}
    drawn = CostClass(rows, run=4, key=(0,))
    assert drawn.runs_in_epoch == 6
    for epoch in range(5):
        runs = list(drawn.runs(6 * epoch, 6))
        assert sorted(row for _, own in runs for row in own) == sorted(row for own in rows.values() for row in own)
        assert all(set(own) <= set(rows[bucket]) for bucket, own in runs)
        assert drawn.buckets_of(6 * epoch, 6) == [bucket for bucket, _ in runs]
    across = [(bucket, own.tolist()) for bucket, own in drawn.runs(4, 9)]
    assert across == [(bucket, own.tolist()) for n in range(4, 13) for bucket, own in drawn.runs(n, 1)]


def test_an_epoch_of_sixty_million_clips_begins_without_an_array_of_them() -> None:
    class Places:
        """Stands for a mapped column of row numbers, and says which were asked for."""

        asked = 0

        def __len__(self) -> int:
            return 60_000_000

        def __getitem__(self, places: np.ndarray) -> np.ndarray:
            self.asked += len(places)
            return places

    places = Places()
    drawn = CostClass({Bucket(0, "1x1"): places}, run=128, key=(0,))  # type: ignore[dict-item]
    tracemalloc.start()
    runs = [run for epoch in range(4) for _, run in drawn.runs(epoch * drawn.runs_in_epoch, 2)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert places.asked == 8 * 128 and len(set(np.concatenate(runs).tolist())) > 1000
    assert peak < 2**20


def test_a_clip_that_cannot_be_read_is_replaced_by_each_other_of_its_bucket_once(manifest: Manifest) -> None:
    plan, elsewhere = planned(manifest), planned(manifest)
    for step in range(0, plan.steps, 7):
        for sample in plan.samples(step):
            others = len(manifest.rows[sample.bucket]) - 1
            tried = [plan.replacement(sample, attempt) for attempt in range(1, others + 1)]
            assert tried == [elsewhere.replacement(sample, attempt) for attempt in range(1, others + 1)]
            assert len({sample.clip.clip_id, *ids(tried)}) == 1 + others
            for other in tried:
                assert (other.index, other.seed, other.bucket) == (sample.index, sample.seed, sample.bucket)
                assert (other.shape, other.clip.bucket) == (sample.shape, sample.bucket)
                assert other.clip == manifest.clip(other.row)
                assert other.caption == (other.clip.caption_detailed if sample.caption else "")
            with pytest.raises(IndexError, match=f"has {others + 1} clips, and {others + 1} of them cannot be read"):
                plan.replacement(sample, others + 1)


def test_replacements_follow_the_bucket_and_begin_again_after_its_last(manifest: Manifest) -> None:
    plan = planned(manifest)
    rows = plan.rows[Bucket(3, "16x9")].tolist()
    sample = next(s for step in range(plan.steps) for s in plan.samples(step) if s.row == rows[-2])
    assert [plan.replacement(sample, attempt).row for attempt in (1, 2, 3)] == [rows[-1], rows[0], rows[1]]


def test_a_replacement_of_what_is_no_sample_of_the_plan_is_refused(manifest: Manifest) -> None:
    plan = planned(manifest)
    sample = plan.samples(0)[0]
    with pytest.raises(ValueError, match="counted from 1, and this is 0"):
        plan.replacement(sample, 0)
    with pytest.raises(ValueError, match=f"clip {sample.clip.clip_id} is none of bucket 16x9 image"):
        plan.replacement(replace(sample, bucket=Bucket(0, "16x9")), 1)


@pytest.mark.parametrize(
    "change",
    [
        {"source_uri": "other.mp4"},
        {"start_s": 0.5},
        {"end_s": 2.5},
        {"width": 48, "height": 80},
        {"crop_x": 8},
        {"crop_y": 4},
        {"crop_w": 40},
        {"crop_h": 24},
    ],
)
def test_a_samples_key_is_of_all_that_its_pixels_depend_on(manifest: Manifest, change: dict[str, object]) -> None:
    sample = planned(manifest).samples(0)[0]
    assert replace(sample, clip=replace(sample.clip, **change)).key != sample.key
    assert replace(sample, shape=replace(sample.shape, height=sample.shape.height + 16)).key != sample.key


def test_a_samples_key_is_not_of_its_words_place_or_noise(manifest: Manifest) -> None:
    sample = planned(manifest).samples(0)[0]
    same = replace(sample, index=9, seed=1, row=3, caption="", clip=replace(sample.clip, caption_detailed="other"))
    assert same.key == sample.key


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(manifest: Manifest, seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        planned(manifest, seed=seed)


def test_values_are_those_of_all_samples(manifest: Manifest) -> None:
    plan = planned(manifest)
    for step in (0, 61):
        latents = [np.prod([16, *sample.shape.latent]) for sample in plan.samples(step)]
        assert plan.values(step) == sum(latents)


def test_ranks_that_do_not_divide_a_batch_are_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="16 samples does not divide evenly among 3 ranks"):
        planned(manifest).check_ranks(3)


def test_a_manifest_without_what_a_phase_wants_is_refused(tmp_path: Path) -> None:
    write_manifest([row(0, tmp_path / "a.mp4", (48, 80), "16x9", 5, 5.0)], tmp_path / "manifest")
    with pytest.raises(ManifestError, match="recipe small trains on images, and the manifest has none that it takes"):
        planned(open_manifest([str(tmp_path / "manifest")], tmp_path / "cache"))


def test_steps_are_shared_out_exactly() -> None:
    assert quotas(100, [70, 30]) == [70, 30]
    assert quotas(10, [1_000_000, 1]) == [9, 1]
    assert quotas(1, [5, 5, 6]) == [0, 0, 1]
    for steps, sizes in ((97, [3, 5, 7, 11]), (5, [1, 1, 1]), (3, [9, 1, 1, 1])):
        assert sum(quotas(steps, sizes)) == steps


def test_a_bucket_that_no_step_reaches_is_named(manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    recipe = small_recipe(
        frames=125, video_batch=8, bucket_run=4, phases=[{"data": "videos", "steps": 1}], warmup_steps=0
    )
    plan = planned(manifest, recipe)
    assert {bucket.duration_s for bucket in plan.unvisited} == {5}
    assert "not trained on: 16x9 5 s" in caplog.text
