"""From a sample to what the transformer trains on: latents and text embeddings.

One sample is encoded at a time, so that what it becomes does not depend on its batch, on the number of ranks, or on who
encodes it: the trainer itself or a server far away give the same bits on the same kind of device.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from media.digest import file_digest
from models.codec import VideoCodec
from models.dct_codec import DctCodec
from models.hashed_text import HashedTextEncoder
from models.text_encoders import SD3TextEncoder, TextEncoder
from models.wan_vae import load_wan_codec
from training.data.clips import read_clip, to_float
from training.data.plan import BatchPlan, Sample
from training.encode.reading import BadClip, Read, read_or_replace
from training.recipe import Recipe

LATENTS_KEPT = 256 * 2**20  # bytes of latents that an encoder remembers: small data sets are read once, not every epoch
TEXTS_KEPT = 16  # prompts; the empty one comes again and again


@dataclass(frozen=True)
class Encoded:
    """A sample as the trainer needs it, on the CPU.

    Attributes:
        clip_id: the clip that was encoded: the plan's, unless ``bad`` names that one.
        latents: float32 [16, T, H/8, W/8], normalised.
        tokens: text tokens [S, width], in the dtype of the text encoder.
        pooled: pooled text [width], of the same dtype.
        cut_t5, cut_clip: tokens of the caption beyond T5's window of 256, seen by no encoder, and beyond CLIP's of 77.
        bad: clips that were to be here and could not be read, in the order in which they were tried.
    """

    index: int
    clip_id: str
    latents: Tensor
    tokens: Tensor
    pooled: Tensor
    cut_t5: int = 0
    cut_clip: int = 0
    bad: tuple[BadClip, ...] = ()


class Text(NamedTuple):
    """A caption encoded: tokens [S, width], pooled [width], and how many tokens did not fit T5's and CLIP's windows."""

    tokens: Tensor
    pooled: Tensor
    cut_t5: int
    cut_clip: int


class Encoder:
    """Codec and text encoder, frozen. Threads may share one: many read, and the device takes one sample at a time.

    Attributes:
        fingerprint: names the weights: encoders with the same give the same.
    """

    def __init__(self, codec: VideoCodec, text: TextEncoder, fps: int, fingerprint: str, device: str = "cpu") -> None:
        self._codec, self._text, self._fps, self._device = codec, text, fps, device
        self.fingerprint = fingerprint
        self._working = Lock()  # the device
        self._remembering = Lock()  # the latents that are known
        self._latents: OrderedDict[str, Tensor] = OrderedDict()
        self._latent_bytes = 0
        self._texts: OrderedDict[str, Text] = OrderedDict()

    def read(self, sample: Sample, plan: BatchPlan) -> Read:
        """The sample, or the one that replaces it where its clip cannot be read. This does not wait for the device.

        ClipError: no clip of its bucket can be read.
        """
        return read_or_replace(sample, plan, self._data_of)

    @torch.no_grad()
    def encode(self, read: Read) -> Encoded:
        """A pure function of the sample, on the device."""
        sample = read.sample
        text = self.text_of(sample.caption)
        return Encoded(sample.index, sample.clip.clip_id, self._latents_of(read), *text, read.bad)

    @torch.no_grad()
    def text_of(self, caption: str) -> Text:
        """A caption's embedding, and how much of it was cut off."""
        with self._working:
            if caption not in self._texts:
                found = self._text.encode([caption])
                cut = (sum(each) for each in (found.truncated, found.truncated_clip))
                self._texts[caption] = Text(found.tokens[0].cpu(), found.pooled[0].cpu(), *cut)
                if len(self._texts) > TEXTS_KEPT:
                    self._texts.popitem(last=False)
            self._texts.move_to_end(caption)
            return self._texts[caption]

    def embed(self, caption: str) -> tuple[Tensor, Tensor]:
        """Text tokens [S, width] and pooled text [width] of a caption."""
        text = self.text_of(caption)
        return text.tokens, text.pooled

    def _data_of(self, sample: Sample) -> Tensor:
        key = sample.key
        with self._remembering:
            if (known := self._latents.get(key)) is not None:
                self._latents.move_to_end(key)
                return known
        return read_clip(sample.clip, sample.shape, self._fps)

    def _latents_of(self, read: Read) -> Tensor:
        if read.data.dtype != torch.uint8:
            return read.data
        with self._working:  # the device takes bytes, a quarter of the floats that it makes of them
            latents = self._codec.encode(to_float(read.data.to(self._device)))[0].float().cpu()
        key = read.sample.key
        with self._remembering:
            if key not in self._latents:
                self._latents[key] = latents
                self._latent_bytes += latents.nbytes
            while self._latent_bytes > LATENTS_KEPT:
                self._latent_bytes -= self._latents.popitem(last=False)[1].nbytes
        return latents


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
    return Encoder(codec, text, recipe.fps, encoder_fingerprint(folder, recipe, device), device)


def encoder_fingerprint(folder: str | None, recipe: Recipe, device: str) -> str:
    """What ``load_encoder`` would call its encoder, which is not loaded for it.

    It is a hash of names and content of the files; and of the kind of device, as bits differ.
    """
    root = Path(folder or ".")
    parts = ["vae"] * (recipe.codec == "wan") + ["text_encoder*"] * (recipe.text == "sd3")
    digest = hashlib.sha256(f"{recipe.codec} {recipe.text} {recipe.fps} {device.split(':')[0]}".encode())
    for part in parts:
        for path in sorted(file for folder in root.glob(part) for file in folder.iterdir() if file.is_file()):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(bytes.fromhex(file_digest(path)))
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
        """This data rank's samples of a step. ClipError: in a bucket that it draws from no clip can be read."""
        samples = self._plan.samples(step, self._data_rank, self._data_ranks)
        return [self._encoder.encode(self._encoder.read(sample, self._plan)) for sample in samples]

    def close(self) -> None:
        pass
