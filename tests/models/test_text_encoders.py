"""The three text encoders agree with diffusers' Stable Diffusion 3 pipeline, and say what they lack or cut off."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from models.text_encoders import SD3TextEncoder
from tests.models.tiny_checkpoints import CLIP_L_WIDTH, POOLED_DIM, T5_WIDTH, write_text_encoders

PROMPTS = ["The cat runs, and the dog!", "", "a dog " * 60, "a cat " * 300, "héllo 世界"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sd35")
    write_text_encoders(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder) -> SD3TextEncoder:
    return SD3TextEncoder(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def test_embeddings_equal_those_of_the_sd3_pipeline(folder, encoder, caplog):
    caplog.set_level(logging.CRITICAL)
    clip = CLIPTextModelWithProjection.from_pretrained
    pipeline = StableDiffusion3Pipeline(
        transformer=None,
        scheduler=None,
        vae=None,
        text_encoder=clip(folder / "text_encoder"),
        text_encoder_2=clip(folder / "text_encoder_2"),
        text_encoder_3=T5EncoderModel.from_pretrained(folder / "text_encoder_3"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        tokenizer_3=T5Tokenizer.from_pretrained(folder / "tokenizer_3"),
    )
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, "cpu", do_classifier_free_guidance=False)
    text = encoder.encode(PROMPTS)
    assert text.tokens.shape == (5, 333, T5_WIDTH) and text.pooled.shape == (5, POOLED_DIM)
    assert torch.equal(text.tokens, tokens)
    assert torch.equal(text.pooled, pooled)


def test_clips_are_side_by_side_above_zeros_and_t5_follows(encoder):
    tokens = encoder.encode(["a cat"]).tokens[0]
    assert tokens[:77, :POOLED_DIM].any() and not tokens[:77, POOLED_DIM:].any()
    assert tokens[77:, POOLED_DIM:].any()


def test_the_two_clips_pad_differently(encoder):
    """CLIP-L pads with the end of text and CLIP-G with "!": after an end, a "!" in the prompt is what pads CLIP-G."""
    ids = [tokenizer("a", padding="max_length", max_length=77).input_ids for tokenizer in encoder._tokenizers[:2]]
    assert ids[0][:3] == ids[1][:3] and set(ids[0][3:]) == {ids[0][2]} and set(ids[1][3:]) == {0}


def test_a_prompt_hardly_depends_on_its_batch(encoder):
    alone, together = encoder.encode(["a cat"]), encoder.encode(["a dog " * 60, "a cat"])
    torch.testing.assert_close(alone.tokens[0], together.tokens[1], rtol=1e-5, atol=1e-5)


def test_what_is_cut_off_is_counted(encoder):
    text = encoder.encode(["a cat", "a dog " * 60, "a cat " * 300])
    # CLIP: start, 120 tokens, end. T5: 2 pieces a pair of words, end.
    assert text.truncated_clip == (0, 122 - 77, 602 - 77)
    assert text.truncated == (0, 0, 601 - 256)


def test_encoders_are_frozen_and_what_they_return_can_be_trained_on(encoder):
    models = [*encoder._clips, encoder._t5]
    assert not any(p.requires_grad or model.training for model in models for p in model.parameters())
    weight = torch.ones(T5_WIDTH, requires_grad=True)
    (encoder.encode(["a cat"]).tokens * weight).sum().backward()  # refused of tensors made in inference mode
    assert weight.grad.any()


def test_float16_files_load_in_float32_unless_asked_otherwise(tmp_path):
    write_text_encoders(tmp_path, dtype=torch.float16)
    assert SD3TextEncoder(tmp_path)._t5.dtype == torch.float32
    mixed = SD3TextEncoder(tmp_path, t5_dtype=torch.bfloat16)
    assert mixed._t5.dtype == torch.bfloat16 and mixed._clips[0].dtype == torch.float32
    assert mixed.encode(["a cat"]).tokens.dtype == torch.float32


def test_every_missing_file_is_named(copy):
    shutil.rmtree(copy / "tokenizer_2")
    (copy / "text_encoder" / "model.safetensors").unlink()
    (copy / "tokenizer_3" / "tokenizer.json").unlink()
    shard = sorted((copy / "text_encoder_3").glob("*-of-*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        SD3TextEncoder(copy)
    wanted = ("text_encoder/model.safetensors", "tokenizer_2/vocab.json", "tokenizer_2/merges.txt")
    for name in (*wanted, "tokenizer_3/tokenizer.json", f"text_encoder_3/{shard.name}"):
        assert str(copy / name) in str(caught.value)


def test_a_weight_that_is_missing_or_misshapen_is_named(copy):
    path = copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    projection = weights.pop("text_projection.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing: text_projection\.weight"):
        SD3TextEncoder(copy)
    save_file({**weights, "text_projection.weight": projection[:3].clone()}, path, metadata={"format": "pt"})
    size = rf"text_projection.weight is \[3, {CLIP_L_WIDTH}\], not \[{CLIP_L_WIDTH}, {CLIP_L_WIDTH}\]"
    with pytest.raises(ValueError, match=size):
        SD3TextEncoder(copy)


def test_encoders_of_different_checkpoints_are_refused(copy):
    write_text_encoders(copy, t5_width=32)
    with pytest.raises(ValueError, match="40 wide together, and T5 only 32"):
        SD3TextEncoder(copy)


def test_the_tiny_folders_have_the_published_names(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"text_encoder/model.safetensors", "text_encoder_2/config.json", "tokenizer/merges.txt"} <= names
    index = json.loads((folder / "text_encoder_3" / "model.safetensors.index.json").read_text())
    assert "shared.weight" in index["weight_map"] and len(set(index["weight_map"].values())) > 1


def test_a_single_string_is_refused(encoder):
    with pytest.raises(TypeError, match="a list of prompts"):
        encoder.encode("a cat")
