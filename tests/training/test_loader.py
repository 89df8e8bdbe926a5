"""What ranks must agree on, and what they must not, for a step to be one step."""

import pytest
import torch

from tests.training.small_data import row, small_recipe, write_manifest
from training.data.manifest import open_manifest
from training.data.parts import parts
from training.data.plan import BatchPlan, Job
from training.distributed.layout import Layout
from training.distributed.parallel import start
from training.encode.encoder import Encoded
from training.loader import assemble, draws

RECIPE = small_recipe(frames=25, video_batch=16, image_batch=16, bucket_run=4)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> BatchPlan:
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for aspect, seconds, count in (("16x9", 2, 9), ("9x16", 2, 5), ("16x9", 1, 3), ("16x9", 0, 4)):
        first = len(rows)
        rows += [row(first + n, folder / "none.mp4", (48, 80), aspect, seconds, float(seconds)) for n in range(count)]
    write_manifest(rows, folder / "manifest")
    manifest = open_manifest([str(folder / "manifest")], folder / "cache")
    return BatchPlan(manifest, Job(recipe=RECIPE, seed=0, manifest=manifest.fingerprint))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_every_rank_has_as_many_micro_batches_each_of_one_shape(plan: BatchPlan, ranks: int, at_once: int) -> None:
    """Each is a collective: a rank that had one more would wait for ever."""
    most = dict.fromkeys(range(1, 126), at_once)
    for step in range(plan.steps):
        samples = [plan.samples(step, rank, ranks) for rank in range(ranks)]
        divided = [parts(plan, step, rank, ranks, most) for rank in range(ranks)]
        assert len(set(map(len, divided))) == 1
        for own, whole in zip(divided, samples, strict=True):
            assert sorted((s for part in own for s in part), key=lambda s: s.index) == whole
            assert all(len({sample.shape for sample in part}) == 1 for part in own)
            assert all(0 < len(part) <= at_once for part in own)


def test_ranks_that_share_a_sample_see_one_noise_and_one_timestep_and_others_see_others(plan: BatchPlan) -> None:
    layout = Layout(world=8, shard=4, sequence=2)
    seen = [
        [draws(sample, RECIPE) for sample in plan.samples(3, layout.data_rank(rank), layout.data_ranks)]
        for rank in range(layout.world)
    ]
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        for (sigma, noise), (same_sigma, same_noise) in zip(first, second, strict=True):
            assert torch.equal(sigma, same_sigma) and torch.equal(noise, same_noise)
    sigmas = torch.cat([sigma for own in seen[::2] for sigma, _ in own])
    assert len(sigmas.unique()) == len(sigmas) == RECIPE.video_batch
    assert not any(torch.equal(seen[0][0][1], own[0][1]) for own in seen[2::2])


def test_noise_is_of_the_latents_shape_and_the_shift_moves_the_levels(plan: BatchPlan) -> None:
    sample = plan.samples(0)[0]
    sigma, noise = draws(sample, RECIPE)
    assert list(noise.shape) == [16, *sample.shape.latent]
    shifted, same = draws(sample, RECIPE.model_copy(update={"flow_shift": 3.0}))
    assert torch.equal(noise, same)
    assert shifted.item() == pytest.approx(3 * sigma.item() / (1 + 2 * sigma.item()), rel=1e-5)


def test_captions_that_do_not_fit_the_text_encoders_are_counted(plan: BatchPlan) -> None:
    part = parts(plan, 0, 0, 1, dict.fromkeys(range(1, 126), 4))[0]
    cut = [(0, 0), (0, 12), (3, 182), (0, 1)]
    encoded = [
        Encoded(s.index, s.clip.clip_id, torch.zeros(16, *s.shape.latent), torch.zeros(3, 4), torch.zeros(2), *counts)
        for s, counts in zip(part, cut, strict=True)
    ]
    assert assemble(part, encoded, plan, start(Layout(), "cpu"), last=True).cut == (1, 3)
