"""From a sample to what the transformer trains on: latents and text embeddings.

One sample is encoded at a time, so that what it becomes does not depend on its batch, on the number of ranks, or on who
encodes it: the trainer itself or a server far away give the same bits on the same kind of device.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from models.codec import VideoCodec
from models.dct_codec import DctCodec
from models.hashed_text import HashedTextEncoder
from models.text_encoders import SD3TextEncoder, TextEncoder
from models.wan_vae import load_wan_codec
from training.data.buckets import Shape
from training.data.clips import read_clip, to_float
from training.data.plan import BatchPlan, Sample
from training.recipe import Recipe

LATENTS_KEPT = 256 * 2**20  # bytes of latents that an encoder remembers: small data sets are read once, not every epoch
TEXTS_KEPT = 16  # prompts; the empty one comes again and again


@dataclass(frozen=True)
class Encoded:
    """A sample as the trainer needs it, on the CPU.

    Attributes:
        latents: float32 [16, T, H/8, W/8], normalised.
        tokens: text tokens [S, width], in the dtype of the text encoder.
        pooled: pooled text [width].
    """

    index: int
    clip_id: str
    latents: Tensor
    tokens: Tensor
    pooled: Tensor


class Encoder:
    """Codec and text encoder, frozen.

    Attributes:
        fingerprint: names the weights: encoders with the same give the same.
    """

    def __init__(self, codec: VideoCodec, text: TextEncoder, fps: int, fingerprint: str, device: str = "cpu") -> None:
        self._codec, self._text, self._fps, self._device = codec, text, fps, device
        self.fingerprint = fingerprint
        self._lock = Lock()  # a server has threads; the device takes one sample at a time
        self._latents: OrderedDict[tuple[str, Shape], Tensor] = OrderedDict()
        self._latent_bytes = 0
        self._texts: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    @torch.no_grad()
    def encode(self, sample: Sample) -> Encoded:
        """A pure function of the sample. ClipError where its source cannot be read."""
        tokens, pooled = self.embed(sample.caption)
        return Encoded(sample.index, sample.clip.clip_id, self._latents_of(sample), tokens, pooled)

    def _latents_of(self, sample: Sample) -> Tensor:
        key = sample.clip.clip_id, sample.shape
        with self._lock:
            if (known := self._latents.get(key)) is not None:
                self._latents.move_to_end(key)
                return known
        video = to_float(read_clip(sample.clip, sample.shape, self._fps))
        with self._lock:
            latents = self._codec.encode(video.to(self._device))[0].float().cpu()
            if key not in self._latents:
                self._latents[key] = latents
                self._latent_bytes += latents.nbytes
            while self._latent_bytes > LATENTS_KEPT:
                self._latent_bytes -= self._latents.popitem(last=False)[1].nbytes
        return latents

    @torch.no_grad()
    def embed(self, caption: str) -> tuple[Tensor, Tensor]:
        """Text tokens [S, width] and pooled text [width] of a caption."""
        with self._lock:
            if caption not in self._texts:
                embedding = self._text.encode([caption])
                self._texts[caption] = embedding.tokens[0].cpu(), embedding.pooled[0].cpu()
                if len(self._texts) > TEXTS_KEPT:
                    self._texts.popitem(last=False)
            self._texts.move_to_end(caption)
            return self._texts[caption]


def load_encoder(folder: str | None, recipe: Recipe, device: str = "cpu") -> Encoder:
    """The recipe's codec and text encoder.

    Args:
        folder: checkpoint in the diffusers layout, for the parts that have weights; what is "lite" has none.

    Raises:
        FileNotFoundError: the folder lacks a part; ValueError: weights are not what they should be.
    """
    parts = [
        name for name, wanted in (("vae", recipe.codec == "wan"), ("text_encoder*", recipe.text == "sd3")) if wanted
    ]
    if parts and folder is None:
        raise FileNotFoundError(f"recipe {recipe.name} encodes with {' and '.join(parts)}, and no folder has them")
    root = Path(folder or ".")
    codec = load_wan_codec(root / "vae").to(device) if recipe.codec == "wan" else DctCodec().to(device)
    text: TextEncoder = HashedTextEncoder(device)
    if recipe.text == "sd3":
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        text = SD3TextEncoder(root, device=device, dtype=dtype)
    return Encoder(codec, text, recipe.fps, _fingerprint(root, recipe, parts, device), device)


def _fingerprint(root: Path, recipe: Recipe, parts: list[str], device: str) -> str:
    """Hash of what the encoder is made of: names and content of its files; and the kind of device, as bits differ."""
    digest = hashlib.sha256(f"{recipe.codec} {recipe.text} {recipe.fps} {device.split(':')[0]}".encode())
    for part in parts:
        for path in sorted(file for folder in root.glob(part) for file in folder.iterdir() if file.is_file()):
            digest.update(str(path.relative_to(root)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


class Feed(Protocol):
    """Where the loop has its data from."""

    def batch(self, step: int) -> list[Encoded]:
        """This data rank's samples of a step, in the plan's order."""
        ...

    def close(self) -> None: ...


class EncodeHere:
    """The feed of one machine: encodes in the trainer's own process, when a batch is asked for."""

    def __init__(self, plan: BatchPlan, encoder: Encoder, data_rank: int, data_ranks: int) -> None:
        self._plan, self._encoder = plan, encoder
        self._data_rank, self._data_ranks = data_rank, data_ranks

    def batch(self, step: int) -> list[Encoded]:
        return [self._encoder.encode(s) for s in self._plan.samples(step, self._data_rank, self._data_ranks)]

    def close(self) -> None:
        pass
