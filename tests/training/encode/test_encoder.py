"""Encoding is a pure function of the sample."""

from pathlib import Path

import pytest
import torch

from models.dct_codec import DctCodec
from tests.models.tiny_checkpoints import write_text_encoders, write_vae
from tests.training.small_data import small_recipe, write_data
from training.data.clips import read_clip, to_float
from training.data.manifest import open_manifest
from training.data.plan import BatchPlan, Job
from training.encode.encoder import Encoded, EncodeHere, load_encoder


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> BatchPlan:
    folder = tmp_path_factory.mktemp("data")
    manifest = open_manifest([write_data(folder)], folder / "cache")
    return BatchPlan(manifest, Job(recipe=small_recipe(), seed=0, manifest=manifest.fingerprint))


def same(one: Encoded, other: Encoded) -> bool:
    tensors = ((getattr(each, name) for name in ("latents", "tokens", "pooled")) for each in (one, other))
    return one.clip_id == other.clip_id and all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_a_sample_becomes_the_codecs_latents_and_the_captions_words(plan: BatchPlan) -> None:
    encoder = load_encoder(None, plan.job.recipe)
    for sample in plan.samples(0) + plan.samples(7):
        encoded = encoder.encode(sample)
        pixels = to_float(read_clip(sample.clip, sample.shape, 24))
        assert torch.equal(encoded.latents, DctCodec().encode(pixels)[0])
        assert list(encoded.latents.shape) == [16, *sample.shape.latent]
        assert torch.equal(encoded.tokens, encoder.embed(sample.caption)[0])


def test_ranks_encode_what_one_rank_would(plan: BatchPlan) -> None:
    whole = EncodeHere(plan, load_encoder(None, plan.job.recipe), 0, 1).batch(3)
    halves = [EncodeHere(plan, load_encoder(None, plan.job.recipe), rank, 2).batch(3) for rank in range(2)]
    assert all(same(a, b) for a, b in zip(whole, halves[0] + halves[1], strict=True))


def test_a_checkpoints_own_encoders_are_used_and_named(plan: BatchPlan, tmp_path: Path) -> None:
    write_vae(tmp_path)
    write_text_encoders(tmp_path)
    recipe = small_recipe(codec="wan", text="sd3")
    encoder = load_encoder(str(tmp_path), recipe)
    sample = plan.samples(0)[0]
    encoded = encoder.encode(sample)
    assert list(encoded.latents.shape) == [16, *sample.shape.latent]
    assert encoded.tokens.shape == (333, 64)
    assert same(encoded, load_encoder(str(tmp_path), recipe).encode(sample))
    before = encoder.fingerprint
    write_vae(tmp_path, seed=1)
    assert load_encoder(str(tmp_path), recipe).fingerprint != before


def test_weights_that_are_nowhere_are_asked_for() -> None:
    with pytest.raises(FileNotFoundError, match="vae"):
        load_encoder(None, small_recipe(codec="wan"))
