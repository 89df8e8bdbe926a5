"""The lite text encoder: every word a fixed pseudo-random vector made from its hash. No weights, no vocabulary.

The layout is that of the three real encoders (NUMERICS 3): 77 positions of "CLIP" whose features fill the first 2048 of
4096 and are zero above, then 256 positions of "T5" that fill all, and a pooled vector of 2048. What a small model needs
of a text encoder is kept: the same word is the same vector wherever it stands, so prompts that share words are close;
different words are nearly orthogonal; the position shows weakly; an empty prompt is not zero but an end of text.

Statistics: a token's entries have zero mean and unit variance over words, as after a layer norm; padding is zero. The
pooled vector is the sum of the words' vectors over the root of their number: again unit variance, and about the same
length for any prompt. All arithmetic is on signs and powers of two, and one square root and division, which IEEE 754
rounds in one way only: results are the same bits on every machine.
"""

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from models.text_encoders import CLIP_TOKENS, T5_TOKENS, TextEmbedding

TOKEN_DIM = 4096
CLIP_DIM = POOLED_DIM = 2048
POSITION_SCALE = 0.25

# A word is a run of letters and digits of any script; scripts that put no spaces between words go by the character.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")


class HashedTextEncoder:
    """Prompts to embeddings of the real encoders' shapes, the same in every process and on every platform."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Tokens float32 [B, 333, 4096] and pooled float32 [B, 2048]. TypeError if prompts is a single string."""
        if isinstance(prompts, str):
            raise TypeError("encode takes a list of prompts, not one string")
        tokens = np.zeros((len(prompts), CLIP_TOKENS + T5_TOKENS, TOKEN_DIM), np.float32)
        pooled = np.zeros((len(prompts), POOLED_DIM), np.float32)
        words = [split_words(prompt) for prompt in prompts]
        for i, sequence in enumerate(words):
            clip = ["<start>", *sequence[: CLIP_TOKENS - 2], "<end>"]
            t5 = [*sequence[: T5_TOKENS - 1], "<end>"]
            tokens[i, : len(clip), :CLIP_DIM] = _with_positions(clip)[:, :CLIP_DIM]
            tokens[i, CLIP_TOKENS : CLIP_TOKENS + len(t5)] = _with_positions(t5)
            vectors = np.stack([_vector(word)[:POOLED_DIM] for word in t5])
            pooled[i] = vectors.astype(np.float32).sum(0) / np.sqrt(np.float32(len(t5)))
        return TextEmbedding(
            torch.from_numpy(tokens).to(self.device),
            torch.from_numpy(pooled).to(self.device),
            truncated=tuple(max(0, len(sequence) - (T5_TOKENS - 1)) for sequence in words),
            truncated_clip=tuple(max(0, len(sequence) - (CLIP_TOKENS - 2)) for sequence in words),
        )


def split_words(prompt: str) -> list[str]:
    """The words of a prompt, without case and punctuation, in one Unicode form."""
    return _WORD.findall(unicodedata.normalize("NFKC", prompt).casefold())


def _with_positions(words: list[str]) -> NDArray[np.float32]:
    """[n, 4096]: each word's vector and, weaker, its position's, scaled to unit variance."""
    vectors = np.stack([_vector(word) for word in words]).astype(np.float32)
    positions = np.stack([_vector(f"<position {i}>") for i in range(len(words))]).astype(np.float32)
    return (vectors + POSITION_SCALE * positions) / np.sqrt(np.float32(1 + POSITION_SCALE**2))


@lru_cache(maxsize=65536)
def _vector(word: str) -> NDArray[np.int8]:
    """A word's 4096 signs: the bits of its hash. A hash of any length is what SHAKE is for."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(word.encode()).digest(TOKEN_DIM // 8), np.uint8))
    return bits.astype(np.int8) * 2 - 1
