"""The lite codec: a truncated 3D DCT. No weights, linear, and every latent frame decodes alone.

The first frame is cut into blocks of 8x8 pixels, the others into blocks of 4 frames x 8x8 pixels. Over colour, time,
height and width of a block runs an orthonormal DCT, and 16 of its coefficients are kept: of 192 in the first frame, of
768 after it. Encoding is the transpose of decoding, so what the codec can show it keeps exactly, and what it drops is
the least-squares loss. Over (R, G, B), a DCT is the opponent colours: luma, red-blue, and magenta-green.

``python -m benchmarks.codec --derive`` prints what the tables below are made of: the 16 coefficients of greatest power
at 128 pixels on the shorter side, in real footage and the sample library together, with means and deviations of the
real footage. On that footage, which it was chosen on, this comes within 0.2 dB of the best 16 linear functions of a
block there are (its own Karhunen-Loeve transform), in images and videos alike. At 288 pixels, where change in time
weighs more against detail, videos are 0.6 dB below.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.codec import LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR, check_latents, check_video


class Coefficient(NamedTuple):
    """One DCT coefficient: its frequency over colour, time, height and width, and its statistics in footage."""

    colour: int
    time: int
    row: int
    column: int
    mean: float
    std: float


# Static footage has the same latents in every latent frame: a channel means the same in both lists, and over four
# equal frames an orthonormal DCT is twice that of one. Only the last differs: detail in the first, change after it.
_SHARED = (
    Coefficient(0, 0, 0, 0, mean=-2.83, std=7.42),
    Coefficient(1, 0, 0, 0, mean=0.6, std=1.41),
    Coefficient(2, 0, 0, 0, mean=0.08, std=0.72),
    Coefficient(0, 0, 1, 0, mean=0.0, std=1.145),
    Coefficient(0, 0, 0, 1, mean=0.0, std=0.94),
    Coefficient(0, 0, 2, 0, mean=0.0, std=0.59),
    Coefficient(0, 0, 0, 2, mean=0.0, std=0.515),
    Coefficient(0, 0, 1, 1, mean=0.0, std=0.45),
    Coefficient(0, 0, 3, 0, mean=0.0, std=0.41),
    Coefficient(0, 0, 2, 1, mean=0.0, std=0.33),
    Coefficient(0, 0, 0, 3, mean=0.0, std=0.32),
    Coefficient(0, 0, 4, 0, mean=0.0, std=0.31),
    Coefficient(0, 0, 1, 2, mean=0.0, std=0.28),
    Coefficient(1, 0, 1, 0, mean=0.0, std=0.275),
    Coefficient(1, 0, 0, 1, mean=0.0, std=0.255),
)
FIRST_FRAME = (*_SHARED, Coefficient(0, 0, 0, 4, mean=0.0, std=0.265))
LATER_FRAMES = (
    *(c._replace(mean=2 * c.mean, std=2 * c.std) for c in _SHARED),
    Coefficient(0, 1, 0, 0, mean=0.0, std=1.05),
)


class DctCodec(nn.Module):
    """A ``VideoCodec`` of 16 DCT coefficients a block, each to zero mean and unit variance. Works in float32."""

    latent_channels = LATENT_CHANNELS
    temporal_factor = TEMPORAL_FACTOR
    spatial_factor = SPATIAL_FACTOR

    def __init__(self) -> None:
        super().__init__()
        for name, kept, frames in (("first", FIRST_FRAME, 1), ("later", LATER_FRAMES, TEMPORAL_FACTOR)):
            self.register_buffer(f"_{name}_basis", dct_basis(frames, kept), persistent=False)
            self.register_buffer(f"_{name}_mean", torch.tensor([c.mean for c in kept]), persistent=False)
            self.register_buffer(f"_{name}_std", torch.tensor([c.std for c in kept]), persistent=False)

    def encode(self, video: Tensor) -> Tensor:
        """Float [B, 3, 4k + 1, H, W] in [-1, 1] -> latents float32 [B, 16, 1 + k, H/8, W/8]. ValueError otherwise."""
        check_video(video)
        video = video.float()
        first = self._encode(video[:, :, :1], "first", 1)
        if video.shape[2] == 1:
            return first
        return torch.cat([first, self._encode(video[:, :, 1:], "later", TEMPORAL_FACTOR)], dim=2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 16, T, h, w] -> video float32 [B, 3, 4(T - 1) + 1, 8h, 8w], clamped to [-1, 1]."""
        first = self.decode_first_frame(latents)
        if latents.shape[2] == 1:
            return first
        later = self._decode(latents[:, :, 1:].float(), "later", TEMPORAL_FACTOR)
        return torch.cat([first, later], dim=2)

    def decode_first_frame(self, latents: Tensor) -> Tensor:
        """The first frame [B, 3, 1, 8h, 8w], from the first latent frame: to the bit what ``decode`` shows there."""
        check_latents(latents)
        return self._decode(latents[:, :, :1].float(), "first", 1)

    def _encode(self, video: Tensor, name: str, frames: int) -> Tensor:
        basis, mean, std = (self.get_buffer(f"_{name}_{part}") for part in ("basis", "mean", "std"))
        return (((to_blocks(video, frames) @ basis) - mean) / std).movedim(-1, 1)

    def _decode(self, latents: Tensor, name: str, frames: int) -> Tensor:
        basis, mean, std = (self.get_buffer(f"_{name}_{part}") for part in ("basis", "mean", "std"))
        return from_blocks((latents.movedim(1, -1) * std + mean) @ basis.T, frames).clamp(-1, 1)


def to_blocks(video: Tensor, frames: int) -> Tensor:
    """[B, 3, T * frames, H, W] -> [B, T, H/8, W/8, 3 * frames * 8 * 8]."""
    blocks = video.unflatten(4, (-1, SPATIAL_FACTOR)).unflatten(3, (-1, SPATIAL_FACTOR)).unflatten(2, (-1, frames))
    return blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def from_blocks(blocks: Tensor, frames: int) -> Tensor:
    """The inverse of ``to_blocks``."""
    pixels = blocks.unflatten(4, (3, frames, SPATIAL_FACTOR, SPATIAL_FACTOR))
    return pixels.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)


def dct_basis(frames: int, kept: tuple[Coefficient, ...]) -> Tensor:
    """Orthonormal columns [3 * frames * 64, 16]: each kept coefficient's pattern over a block."""
    colour, time, space = _dct(3), _dct(frames), _dct(SPATIAL_FACTOR)
    patterns = [
        torch.einsum("k,t,y,x->ktyx", colour[c.colour], time[c.time], space[c.row], space[c.column]).flatten()
        for c in kept
    ]
    return torch.stack(patterns, dim=1).float()


def _dct(size: int) -> Tensor:
    """The orthonormal DCT-II as rows of patterns, float64 [size, size]."""
    frequency, place = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    patterns = torch.cos(math.pi * (place.double() + 0.5) * frequency / size) * math.sqrt(2 / size)
    patterns[0] /= math.sqrt(2)
    return patterns
