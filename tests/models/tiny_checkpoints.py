"""Tiny random checkpoints on disk, in the layouts in which the real ones are published.

``write_text_encoders`` writes the six text folders of a Stable Diffusion 3.5 (and ContentV) checkpoint, ``write_vae``
the ``vae`` folder of a Wan2.1 (and ContentV) one. File names, configuration keys, token ids and padding tokens are the
published ones; only widths, depths and vocabularies are small. The same seed gives the same bytes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

CLIP_L_WIDTH = 16
CLIP_G_WIDTH = 24
T5_WIDTH = 64
POOLED_DIM = CLIP_L_WIDTH + CLIP_G_WIDTH  # 2048 in the published checkpoint

_START, _END = "<|startoftext|>", "<|endoftext|>"
_MERGES = ("t h", "th e</w>", "i n", "in g</w>", "a n", "an d</w>", "c a", "ca t</w>", "d o", "do g</w>")
_PIECES = (
    "▁",
    "▁a",
    "▁the",
    "▁cat",
    "▁dog",
    "▁runs",
    "ing",
    "s",
    *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-",
)


def write_text_encoders(
    folder: Path,
    *,
    clip_l_width: int = CLIP_L_WIDTH,
    clip_g_width: int = CLIP_G_WIDTH,
    t5_width: int = T5_WIDTH,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> None:
    """Write ``text_encoder``, ``_2``, ``_3`` and ``tokenizer``, ``_2``, ``_3`` under ``folder``.

    Embeddings are [B, 77 + 256, t5_width], pooled [B, clip_l_width + clip_g_width]. The published files are float16.
    """
    folder = Path(folder)
    vocabulary = _clip_vocabulary()
    # In the published checkpoint CLIP-L pads with the end of text, CLIP-G with "!", which is id 0.
    _write_clip_tokenizer(folder / "tokenizer", vocabulary, pad=_END)
    _write_clip_tokenizer(folder / "tokenizer_2", vocabulary, pad="!")
    pieces = _write_t5_tokenizer(folder / "tokenizer_3")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip_l = _clip(len(vocabulary), clip_l_width, "quick_gelu")
        clip_g = _clip(len(vocabulary), clip_g_width, "gelu")
        t5 = _t5(pieces, t5_width)
    clip_l.to(dtype).save_pretrained(folder / "text_encoder")
    clip_g.to(dtype).save_pretrained(folder / "text_encoder_2")
    t5.to(dtype).save_pretrained(folder / "text_encoder_3", max_shard_size="200KB")


def write_vae(folder: Path, *, base_dim: int = 8, seed: int = 0) -> None:
    """Write ``vae`` under ``folder``: the Wan2.1 VAE, ``base_dim`` wide where the published one is 96."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(base_dim=base_dim, num_res_blocks=1)
    vae.save_pretrained(Path(folder) / "vae")


def _clip_vocabulary() -> dict[str, int]:
    """Bytes, bytes that end a word, merges, and last the two special tokens: the order of the published file."""
    alphabet = sorted(ByteLevel.alphabet())
    merged = [pair.replace(" ", "") for pair in _MERGES]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *merged, _START, _END]
    return {token: index for index, token in enumerate(tokens)}


def _write_clip_tokenizer(folder: Path, vocabulary: dict[str, int], pad: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES]) + "\n", encoding="utf-8")
    special = {"bos_token": _START, "eos_token": _END, "pad_token": pad, "unk_token": _END}
    _write_json(folder / "special_tokens_map.json", special)
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    _write_json(folder / "tokenizer_config.json", {**config, **special, "tokenizer_class": "CLIPTokenizer"})


def _write_t5_tokenizer(folder: Path) -> int:
    """The tokenizer as ``tokenizer.json``, without the SentencePiece model; its number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ["<pad>", "</s>", "<unk>"]
    extra = [f"<extra_id_{i}>" for i in range(99, -1, -1)]
    scores = [(token, 0.0) for token in special]
    scores += [(piece, -2.0 - index / 10) for index, piece in enumerate(_PIECES)]
    scores += [(token, 0.0) for token in extra]
    tokenizer = Tokenizer(Unigram(scores, unk_id=2, byte_fallback=False))
    tokenizer.add_special_tokens([*special, *extra])
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", names)
    config = {"extra_ids": 100, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
    _write_json(folder / "tokenizer_config.json", {**config, **names})
    return len(scores)


def _clip(tokens: int, width: int, activation: str) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act=activation,
        # As published: 2 is not the id of the end of text, and stands for "the highest id there is".
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        initializer_factor=2.0,
    )
    return CLIPTextModelWithProjection(config).eval()


def _t5(tokens: int, width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=tokens,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config).eval()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
