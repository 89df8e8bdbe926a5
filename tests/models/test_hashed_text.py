"""The lite text encoder: the same words are the same vectors, everywhere, and different words are not."""

import hashlib
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cosine_similarity

from models.hashed_text import HashedTextEncoder, split_words
from models.text_encoders import CLIP_TOKENS

ENCODER = HashedTextEncoder()
DIGEST = """
import hashlib
from models.hashed_text import HashedTextEncoder
text = HashedTextEncoder().encode(["A red fox, in snow", "", "一只猫"])
print(hashlib.sha256(text.tokens.numpy().tobytes() + text.pooled.numpy().tobytes()).hexdigest())
"""


def test_shapes_are_those_of_the_real_encoders():
    text = ENCODER.encode(["a red fox", "", "snow"])
    assert text.tokens.shape == (3, 333, 4096) and text.pooled.shape == (3, 2048)
    assert text.tokens.dtype == text.pooled.dtype == torch.float32
    assert text.truncated == text.truncated_clip == (0, 0, 0)


def test_another_process_gives_the_same_bytes():
    text = ENCODER.encode(["A red fox, in snow", "", "一只猫"])
    here = hashlib.sha256(text.tokens.numpy().tobytes() + text.pooled.numpy().tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
    # Of every machine, not of this one alone.
    assert here == "f7b1d77437a0527c703071cc54109456e36e48eceea7ec9f42ac582037ccc508"


def test_prompts_that_share_words_are_closer_than_those_that_do_not():
    fox, close, far = ENCODER.encode(
        ["a red fox runs in snow", "a red fox sleeps in snow", "two boats leave that harbour at dawn"]
    ).pooled
    assert cosine_similarity(fox, close, dim=0) > 0.7 > 0.2 > cosine_similarity(fox, far, dim=0).abs()


def test_order_shows_in_the_tokens_and_hardly_in_the_pooled():
    text = ENCODER.encode(["dog bites man", "man bites dog"])
    torch.testing.assert_close(text.pooled[0], text.pooled[1])
    assert not torch.equal(text.tokens[0], text.tokens[1])
    dog_first, dog_last = text.tokens[0, CLIP_TOKENS], text.tokens[1, CLIP_TOKENS + 2]
    assert cosine_similarity(dog_first, dog_last, dim=0) > 0.9


def test_case_and_punctuation_and_unicode_form_do_not_matter():
    same = ENCODER.encode(["An ÉCLAIR, please!", "an e\u0301clair please"])
    assert torch.equal(same.tokens[0], same.tokens[1])
    assert split_words("Straße 3D, don't 一只猫cat") == ["strasse", "3d", "don", "t", "一", "只", "猫", "cat"]


def test_tokens_have_unit_variance_and_padding_is_zero():
    tokens = ENCODER.encode(["a red fox runs in snow"]).tokens[0]
    used = tokens[CLIP_TOKENS : CLIP_TOKENS + 7]
    assert used.std() == pytest.approx(1, abs=0.02) and used.mean() == pytest.approx(0, abs=0.02)
    assert not tokens[CLIP_TOKENS + 7 :].any() and not tokens[8:CLIP_TOKENS].any()
    assert not tokens[:CLIP_TOKENS, 2048:].any()


def test_the_empty_prompt_is_an_end_of_text_not_nothing():
    text = ENCODER.encode([""])
    assert text.tokens[0, CLIP_TOKENS].any() and text.pooled.std() == pytest.approx(1, abs=0.05)


def test_a_prompt_does_not_depend_on_its_batch():
    together, alone = ENCODER.encode(["a fox", "a boat " * 400]), ENCODER.encode(["a fox"])
    assert torch.equal(together.tokens[0], alone.tokens[0]) and torch.equal(together.pooled[0], alone.pooled[0])


def test_what_is_cut_off_is_counted():
    text = ENCODER.encode(["fox " * 300, "fox " * 100])
    assert text.truncated == (45, 0) and text.truncated_clip == (225, 25)


def test_a_single_string_is_refused():
    with pytest.raises(TypeError, match="a list of prompts"):
        ENCODER.encode("a fox")
