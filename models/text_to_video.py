"""Text to video: the transformer, the codec and the text encoder as one, and how they are loaded from a folder.

A checkpoint is a folder in the diffusers layout, as ContentV-8B is published::

    transformer/                                    always
    vae/                                            with codec "wan"
    text_encoder/ text_encoder_2/ text_encoder_3/   with text "sd3"
    tokenizer/ tokenizer_2/ tokenizer_3/            with text "sd3"

A ``scheduler/`` may be there and is not read: its shift is a parameter of sampling. With codec and text "lite" nothing
but the transformer is needed. Which is wanted is always said, never found out from what happens to be there.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models.checkpoint import check_stored, load_transformer, read_config
from models.codec import VideoCodec, latent_shape
from models.dct_codec import DctCodec
from models.hashed_text import HashedTextEncoder
from models.sampler import Progress, sample
from models.text_encoders import SD3TextEncoder, TextEmbedding, TextEncoder
from models.transformer import ContentVTransformer, set_attention
from models.wan_vae import load_wan_codec

_log = logging.getLogger(__name__)

CodecName = Literal["wan", "lite"]
TextName = Literal["sd3", "lite"]

# What must be in each part. A weight file may be split: then its index and the shards stand for it.
_NETWORK: tuple[str, ...] = ("config.json", "diffusion_pytorch_model.safetensors")
_OF_TEXT: dict[str, tuple[str, ...]] = {
    f"{part}{number}": names
    for part, names in {
        "text_encoder": ("config.json", "model.safetensors"),
        "tokenizer": ("tokenizer_config.json",),
    }.items()
    for number in ("", "_2", "_3")
}


@dataclass(frozen=True)
class TextToVideo:
    """The three networks. The transformer works in its own dtype, the codec in that of its weights (float32)."""

    transformer: ContentVTransformer
    codec: VideoCodec
    text_encoder: TextEncoder

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        frames: int = 125,
        height: int = 432,
        width: int = 768,
        steps: int = 50,
        guidance: float = 6.0,
        shift: float = 17.0,
        negative_prompt: str = "",
        progress: Progress | None = None,
    ) -> Tensor:
        """Latents [B, 16, T, H/8, W/8], float32, of a video for each prompt and its seed. Defaults are the published.

        ValueError, naming the nearest that fits, where ``frames`` is not 4k + 1 or a side not a multiple of 16.
        """
        shape = (self.codec.latent_channels, *latent_shape(frames, height, width))
        text = self._embed(list(prompts))
        negative = self._embed([negative_prompt]) if guidance != 1.0 else None
        return sample(
            self.transformer,
            text,
            negative,
            shape,
            seeds=seeds,
            steps=steps,
            shift=shift,
            guidance=guidance,
            progress=progress,
        )

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The video [3, F, H, W] in [-1, 1] of one sample's latents [16, T, H/8, W/8]."""
        return self.codec.decode(latents[None])[0]

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], **settings: Any) -> Tensor:
        """Videos [B, 3, F, H, W] in [-1, 1]: ``sample``, with its keywords, then ``decode``, one video at a time."""
        return torch.stack([self.decode(latents) for latents in self.sample(prompts, seeds, **settings)])

    @torch.no_grad()
    def _embed(self, prompts: list[str]) -> TextEmbedding:
        weight = next(self.transformer.parameters())
        text = self.text_encoder.encode(prompts)
        for prompt, beyond in zip(prompts, text.truncated, strict=False):
            if beyond:
                _log.warning("the last %d tokens of a prompt are beyond the window and not read: %s", beyond, prompt)
        return TextEmbedding(text.tokens.to(weight.device, weight.dtype), text.pooled.to(weight.device, weight.dtype))


def files_of(folder: Path, codec: CodecName, text: TextName) -> list[Path]:
    """The files of a checkpoint that are read, sorted. FileNotFoundError names all that are missing, and what helps."""
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint {str(folder)!r} is no folder")
    parts = {"transformer": _NETWORK}
    parts |= {"vae": _NETWORK} if codec == "wan" else {}
    parts |= _OF_TEXT if text == "sd3" else {}
    files = {file for part, names in parts.items() for name in names for file in _whole(folder / part / name)}
    missing = sorted(str(file.relative_to(folder)) for file in files if not file.is_file())
    if missing:
        advice = "it must have the diffusers layout of ContentV-8B"
        if any(file.startswith("vae") for file in missing):
            advice += "; for a model trained on the weight-free codec pass codec 'lite'"
        if any(file.startswith(("text", "token")) for file in missing):
            advice += "; for one trained on hashed words pass text 'lite'"
        raise FileNotFoundError(f"checkpoint {str(folder)!r} lacks {', '.join(missing)}: {advice}")
    tokenizers = [path for part in parts if part.startswith("tokenizer") for path in (folder / part).iterdir()]
    return sorted(files | {path for path in tokenizers if path.is_file()})


def _whole(file: Path) -> list[Path]:
    """The file itself, or, where only its index is there, the index and the shards that it names."""
    index = file.with_name(f"{file.name}.index.json")
    if file.is_file() or not index.is_file():
        return [file]
    shards = set(json.loads(index.read_text())["weight_map"].values())
    return [index, *(file.with_name(shard) for shard in shards)]


def check_checkpoint(folder: str | Path, codec: CodecName, text: TextName) -> list[Path]:
    """Whether a folder can be loaded, from file names and headers alone; returns the files that will be read, sorted.

    Raises FileNotFoundError with all that is missing, CheckpointError where the weights are not the transformer's.
    """
    folder = Path(folder)
    files = files_of(folder, codec, text)
    network = folder / "transformer"
    check_stored(network, read_config(network))
    return files


def load_text_to_video(
    folder: str | Path,
    *,
    codec: CodecName = "wan",
    text: TextName = "sd3",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    codec_memory: int | None = None,
) -> TextToVideo:
    """Load a checkpoint folder for sampling; on an NPU the transformer attends through its fused kernel.

    Args:
        codec: "wan" reads vae/; "lite" is the weight-free codec, for models trained on its latents.
        text: "sd3" reads the three encoders; "lite" hashes words, for models trained on that.
        dtype: of transformer and text encoders. The VAE works in float32, as published.
        codec_memory: bytes that the VAE may take to decode; below what a whole frame takes it works in tiles.

    Raises:
        FileNotFoundError: parts are missing; all that are, are named.
        ValueError: weights do not fit the transformer, or the text encoders' widths do not.
    """
    folder, device = Path(folder), torch.device(device)
    files_of(folder, codec, text)
    transformer = load_transformer(folder / "transformer", dtype=dtype, device=device).eval().requires_grad_(False)
    if device.type == "npu":
        set_attention(transformer, "npu")
    encoder: TextEncoder = HashedTextEncoder(device)
    if text == "sd3":
        encoder = SD3TextEncoder(folder, device=device, dtype=dtype)
    _check_widths(transformer, encoder)
    decoder = load_wan_codec(folder / "vae", memory_bytes=codec_memory) if codec == "wan" else DctCodec()
    return TextToVideo(transformer, decoder.to(device), encoder)


def _check_widths(transformer: ContentVTransformer, encoder: TextEncoder) -> None:
    embedding, config = encoder.encode([""]), transformer.config
    found = embedding.tokens.shape[-1], embedding.pooled.shape[-1]
    wanted = config.joint_attention_dim, config.pooled_projection_dim
    if found != wanted:
        raise ValueError(
            f"the text encoder gives tokens of width {found[0]} and pooled of {found[1]}, the transformer takes "
            f"{wanted[0]} and {wanted[1]}: they are not of one checkpoint"
        )
