"""Encoding is a pure function of the sample, and a clip that cannot be read is replaced as the plan says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.dct_codec import DctCodec
from models.text_encoders import SD3TextEncoder
from models.transformer import ContentVTransformer
from tests.models.tiny_checkpoints import write_text_encoders, write_vae
from tests.training.small_data import small_recipe, write_data
from training.data.clips import ClipError, SourceUnavailable, read_clip, to_float
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
        encoded = encoder.encode(encoder.read(sample, plan))
        pixels = to_float(read_clip(sample.clip, sample.shape, 24))
        assert torch.equal(encoded.latents, DctCodec().encode(pixels)[0])
        assert list(encoded.latents.shape) == [16, *sample.shape.latent]
        assert torch.equal(encoded.tokens, encoder.embed(sample.caption)[0])


def test_ranks_encode_what_one_rank_would(plan: BatchPlan) -> None:
    whole = EncodeHere(plan, load_encoder(None, plan.job.recipe), 0, 1).batch(3)
    halves = [EncodeHere(plan, load_encoder(None, plan.job.recipe), rank, 2).batch(3) for rank in range(2)]
    assert all(same(a, b) for a, b in zip(whole, halves[0] + halves[1], strict=True))


@pytest.mark.effect("Recipe.codec")
@pytest.mark.effect("Recipe.text")
def test_a_checkpoints_own_encoders_are_used_and_named(plan: BatchPlan, tmp_path: Path) -> None:
    write_vae(tmp_path)
    write_text_encoders(tmp_path)
    recipe = small_recipe(codec="wan", text="sd3")
    encoder = load_encoder(str(tmp_path), recipe)
    sample = plan.samples(0)[0]
    encoded = encoder.encode(encoder.read(sample, plan))
    assert list(encoded.latents.shape) == [16, *sample.shape.latent]
    assert encoded.tokens.shape == (333, 64)
    again = load_encoder(str(tmp_path), recipe)
    assert same(encoded, again.encode(again.read(sample, plan)))
    before = encoder.fingerprint
    write_vae(tmp_path, seed=1)
    assert load_encoder(str(tmp_path), recipe).fingerprint != before


def test_weights_that_are_nowhere_are_asked_for() -> None:
    with pytest.raises(FileNotFoundError, match="vae"):
        load_encoder(None, small_recipe(codec="wan"))


def data_without(folder: Path, *missing: int) -> BatchPlan:
    """The plan of small data of which some files are gone."""
    manifest = open_manifest([write_data(folder)], folder / "cache")
    for number in missing:
        (folder / f"{number}.mp4").unlink()
    return BatchPlan(manifest, Job(recipe=small_recipe(), seed=0, manifest=manifest.fingerprint))


def test_a_bad_clip_is_replaced_by_the_next_of_its_bucket_and_named_alike_by_every_rank(tmp_path: Path) -> None:
    whole, plan = data_without(tmp_path / "whole"), data_without(tmp_path / "lacks", 0)
    steps = range(plan.steps)
    batches = [EncodeHere(plan, load_encoder(None, plan.job.recipe), 0, 1).batch(step) for step in steps]
    replaced = 0
    for step, batch in zip(steps, batches, strict=True):
        for encoded, sample in zip(batch, plan.samples(step), strict=True):
            if not sample.clip.source_uri.endswith("/0.mp4"):
                assert (encoded.clip_id, encoded.bad) == (sample.clip.clip_id, ())
                continue
            replaced += 1
            other = plan.replacement(sample, 1)
            assert [(bad.clip_id, bad.source_uri) for bad in encoded.bad] == [
                (sample.clip.clip_id, sample.clip.source_uri)
            ]
            assert "cannot be read" in encoded.bad[0].words
            assert (encoded.index, encoded.clip_id) == (sample.index, other.clip.clip_id)
            pixels = to_float(read_clip(other.clip, sample.shape, 24))
            assert torch.equal(encoded.latents, DctCodec().encode(pixels)[0])
    assert replaced
    halves = [EncodeHere(plan, load_encoder(None, plan.job.recipe), rank, 2).batch(3) for rank in range(2)]
    assert all(same(a, b) and a.bad == b.bad for a, b in zip(batches[3], halves[0] + halves[1], strict=True))
    assert [s.clip.clip_id for s in plan.samples(3)] == [s.clip.clip_id for s in whole.samples(3)]


def test_a_bucket_of_which_no_clip_can_be_read_ends_with_their_words(tmp_path: Path) -> None:
    plan = data_without(tmp_path, *range(7))
    encoder = load_encoder(None, plan.job.recipe)
    sample = next(s for step in range(plan.steps) for s in plan.samples(step) if s.bucket.duration_s)
    count = len(plan.rows[sample.bucket])
    with pytest.raises(ClipError, match=rf"none of the {count} clips of bucket .* can be read; the first: clip clip-"):
        encoder.read(sample, plan)


def test_a_clip_whose_storage_is_down_is_not_replaced(plan: BatchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_clip(*arguments: object) -> torch.Tensor:
        raise SourceUnavailable("the bucket does not answer")

    monkeypatch.setattr("training.encode.encoder.read_clip", read_clip)
    with pytest.raises(SourceUnavailable, match="the bucket does not answer"):
        load_encoder(None, plan.job.recipe).read(plan.samples(0)[0], plan)


def test_two_crops_of_one_clip_and_two_spans_do_not_share_latents(plan: BatchPlan) -> None:
    encoder = load_encoder(None, plan.job.recipe)
    sample = next(s for step in range(plan.steps) for s in plan.samples(step) if s.clip.end_s > 1.5)
    clip = sample.clip
    others = [replace(clip, crop_w=clip.crop_w // 2), replace(clip, start_s=clip.start_s + 0.5)]
    for each in (clip, *others, clip):
        asked = replace(sample, clip=each)
        found = encoder.encode(encoder.read(asked, plan)).latents
        assert torch.equal(found, DctCodec().encode(to_float(read_clip(each, sample.shape, 24)))[0])


def test_what_is_known_is_not_read_again_for_another_caption(tmp_path: Path) -> None:
    plan = data_without(tmp_path)
    encoder, sample = load_encoder(None, plan.job.recipe), plan.samples(0)[0]
    first = encoder.encode(encoder.read(sample, plan))
    Path(sample.clip.source_uri).unlink()
    again = encoder.encode(encoder.read(replace(sample, caption="another"), plan))
    assert again.bad == () and torch.equal(again.latents, first.latents)


def test_tokens_of_a_caption_that_do_not_fit_are_counted(plan: BatchPlan) -> None:
    encoder, sample = load_encoder(None, plan.job.recipe), plan.samples(0)[0]
    counts = []
    for words in (5, 100, 300):
        encoded = encoder.encode(encoder.read(replace(sample, caption="word " * words), plan))
        counts.append((encoded.cut_t5, encoded.cut_clip))
    assert counts == [(0, 0), (0, 100 - 75), (300 - 255, 300 - 75)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_has_the_dtype_that_its_encoders_compute_in_and_the_model_takes_it(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    write_text_encoders(tmp_path)
    text = SD3TextEncoder(tmp_path, dtype=dtype).encode(["a cat", ""])
    assert (text.tokens.dtype, text.pooled.dtype) == (dtype, dtype)
    size = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    widths = {"joint_attention_dim": text.tokens.shape[-1], "pooled_projection_dim": text.pooled.shape[-1]}
    model = ContentVTransformer(**size, **widths)
    inputs = torch.randn(2, 16, 2, 4, 4), text.tokens, text.pooled, torch.tensor([3.0, 700.0])
    exact = model(inputs[0], text.tokens.float(), text.pooled.float(), inputs[3])
    assert torch.equal(model(*inputs), exact)
