"""Text encoders: prompts to the token sequence and the pooled vector that condition the transformer.

``SD3TextEncoder`` is the three encoders of Stable Diffusion 3.5 (and ContentV), laid out as diffusers does:

    CLIP-L [77, 768] ++ CLIP-G [77, 1280] on features, zeros up to T5's width   ->   77 tokens
    T5-XXL [256, 4096]                                                          ->  256 tokens
    pooled: CLIP-L [768] ++ CLIP-G [1280]

All three are padded to their length and run without a mask, as the weights were trained; CLIP's states are those before
the last layer.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from media.naming import first_of

CLIP_TOKENS = 77
T5_TOKENS = 256

_CLIPS = ("text_encoder", "text_encoder_2")
_T5 = "text_encoder_3"


@dataclass(frozen=True)
class TextEmbedding:
    """What prompts become: ``tokens`` [B, 333, width] and ``pooled`` [B, pooled width].

    Attributes:
        truncated: for each prompt, how many of its tokens were beyond T5's window: no encoder saw them.
        truncated_clip: the same of CLIP's shorter window: T5 saw them, as far as ``truncated`` does not count them.
    """

    tokens: Tensor
    pooled: Tensor
    truncated: tuple[int, ...] = ()
    truncated_clip: tuple[int, ...] = ()


class TextEncoder(Protocol):
    """Encodes prompts. An empty prompt is a prompt like any other: the unconditional one of guidance."""

    def encode(self, prompts: list[str]) -> TextEmbedding: ...


class SD3TextEncoder:
    """CLIP-L, CLIP-G and T5-XXL of a Stable Diffusion 3.5 or ContentV folder, frozen.

    Widths come from the folder's configurations: 4096 for tokens and 2048 pooled in the published one.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        t5_dtype: torch.dtype | None = None,
    ) -> None:
        """Load ``text_encoder``, ``_2``, ``_3`` and ``tokenizer``, ``_2``, ``_3`` from the folder; nothing is fetched.

        Args:
            dtype: of the CLIPs' weights, and of T5's unless ``t5_dtype`` says otherwise. The published files are
                float16, which is not what they are loaded as unless asked for.
            t5_dtype: bfloat16 makes 9.5 GB of the 19 GB of T5-XXL.

        Raises:
            FileNotFoundError: folders or files are missing; all of them are named.
            ValueError: weights are missing or of another shape, or the encoders' widths do not go together.
        """
        import transformers  # takes seconds, which every process without these encoders would pay

        folder = Path(folder)
        _check_files(folder)
        self.device = torch.device(device)
        self._tokenizers = [
            transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True),
            transformers.T5Tokenizer.from_pretrained(folder / "tokenizer_3", local_files_only=True),
        ]
        clip = transformers.CLIPTextModelWithProjection
        self._clips = [_load(clip, folder / name, dtype).to(self.device) for name in _CLIPS]
        self._t5 = _load(transformers.T5EncoderModel, folder / _T5, t5_dtype or dtype).to(self.device)
        clip_width, t5_width = sum(model.config.hidden_size for model in self._clips), self._t5.config.d_model
        if clip_width > t5_width:
            raise ValueError(
                f"{folder}: the CLIP encoders are {clip_width} wide together, and T5 only {t5_width}: "
                "these encoders are not of one checkpoint"
            )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Tokens [B, 77 + 256, T5's width] and pooled [B, CLIP-L's + CLIP-G's projection].

        Both are of the encoders' dtype, in which they are exact; where the CLIPs' and T5's differ, of the wider one.
        What does not fit into a window is cut off at its end, and counted in the embedding's ``truncated``.
        TypeError if ``prompts`` is a single string.
        """
        if isinstance(prompts, str):
            raise TypeError("encode takes a list of prompts, not one string")
        states, pooled, clip_cut = [], [], [0] * len(prompts)
        for tokenizer, model in zip(self._tokenizers, self._clips, strict=False):
            ids, cut = _tokenize(tokenizer, prompts, CLIP_TOKENS)
            output = model(ids.to(self.device), output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
            clip_cut = [max(pair) for pair in zip(clip_cut, cut, strict=True)]
        ids, t5_cut = _tokenize(self._tokenizers[2], prompts, T5_TOKENS)
        t5 = self._t5(ids.to(self.device)).last_hidden_state
        clip = torch.cat(states, dim=-1)
        clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        tokens = torch.cat([clip, t5], dim=1)
        return TextEmbedding(tokens, torch.cat(pooled, dim=-1).to(tokens.dtype), tuple(t5_cut), tuple(clip_cut))


def _tokenize(tokenizer: Any, prompts: list[str], length: int) -> tuple[Tensor, list[int]]:
    """Token ids [B, length], and for each prompt how many tokens were cut off."""
    whole = tokenizer(prompts, verbose=False).input_ids
    ids = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    return ids, [max(0, len(tokens) - length) for tokens in whole]


def _load(model_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The frozen model. Left to itself, transformers fills what a checkpoint lacks with random numbers."""
    model, report = model_class.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{folder}: {len(missing)} weights are missing: {first_of(missing)}")
    mismatched = [f"{key} is {list(there)}, not {list(here)}" for key, there, here in report["mismatched_keys"]]
    if mismatched:
        raise ValueError(f"{folder}: {len(mismatched)} weights do not fit config.json: {first_of(sorted(mismatched))}")
    return model.eval().requires_grad_(False)


def _check_files(folder: Path) -> None:
    """FileNotFoundError that names every file the six folders lack."""
    missing = [str(folder / name / "config.json") for name in (*_CLIPS, _T5) if not _has(folder, name, "config.json")]
    for name in (*_CLIPS, _T5):
        missing += _missing_weights(folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        if not _has(folder, name, "tokenizer.json"):
            missing += [
                str(folder / name / file) for file in ("vocab.json", "merges.txt") if not _has(folder, name, file)
            ]
    if not _has(folder, "tokenizer_3", "tokenizer.json"):
        missing.append(str(folder / "tokenizer_3" / "tokenizer.json"))
    if missing:
        raise FileNotFoundError(
            f"text encoders are not complete under {folder}; missing: {', '.join(missing)}. It should "
            "hold the folders text_encoder, text_encoder_2, text_encoder_3, tokenizer, tokenizer_2 and tokenizer_3 "
            "of a Stable Diffusion 3.5 or ContentV checkpoint in the diffusers layout"
        )


def _has(folder: Path, name: str, file: str) -> bool:
    return (folder / name / file).is_file()


def _missing_weights(folder: Path) -> list[str]:
    """The safetensors files that an encoder's folder lacks: the one, or those that its index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return []
    if not index.is_file():
        return [str(folder / "model.safetensors")]
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [str(folder / shard) for shard in shards if not (folder / shard).is_file()]
