"""The paper codec: the Wan2.1 video VAE of diffusers with the normalisation of training, in bounded memory.

The VAE is causal in time, so it runs one latent frame after the other, with the last frames before every convolution
carried along: exact, and in the same memory whatever the length. In space it runs whole, or, where that would take more
than ``memory_bytes``, in overlapping tiles of one size, blended linearly: close, not exact, as a tile does not see what
lies beyond its edge, and its middle block attends over the tile alone.

What a call holds at any moment beside the weights, its argument and its result is at most ::

    itemsize * (k * base_dim * pixels + 3 * tokens ** 2)       k = 42 for encode, 56 for decode

bytes for a tile of so many pixels and latent pixels (``tokens``), times the samples it runs at once. The second term is
attention's, where the device has no fused kernel for it. These are bytes of tensors: what a convolution library takes
for itself comes on top. For the published VAE (base_dim 96, float32) a tile of 256x256
takes 1.4 GB to decode, a whole frame of 432x768 7.4 GB and one of 720x1280 22.3 GB.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.codec import LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR, check_latents, check_video

if TYPE_CHECKING:  # importing diffusers takes seconds, which every process of a run would pay
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

ENCODE_FLOATS = 42
DECODE_FLOATS = 56
LEAST_TILE = 16  # latent pixels: 128 pixels
OVERLAP = 4  # the part of a tile that it shares with the next: one in four


class WanCodec(nn.Module):
    """A ``VideoCodec``: Wan2.1's VAE, frozen. ``(z - mean) / std`` is what a model trains on (NUMERICS 4)."""

    latent_channels = LATENT_CHANNELS
    temporal_factor = TEMPORAL_FACTOR
    spatial_factor = SPATIAL_FACTOR
    _mean: Tensor
    _std: Tensor

    def __init__(self, vae: "AutoencoderKLWan", *, memory_bytes: int | None = None) -> None:
        """Use ``vae`` with the statistics of its configuration.

        Args:
            memory_bytes: the bound on working memory (see the module). None: frames are never cut into tiles.

        Raises:
            ValueError: it is not a VAE of Wan2.1's shape, such as Wan2.2's of 48 channels.
        """
        super().__init__()
        config = _checked_config(vae)
        self.vae = vae.eval().requires_grad_(False)
        self.memory_bytes = memory_bytes
        self._base_dim: int = config.base_dim
        shape = (1, LATENT_CHANNELS, 1, 1, 1)
        self.register_buffer("_mean", torch.tensor(config.latents_mean).view(shape), persistent=False)
        self.register_buffer("_std", torch.tensor(config.latents_std).view(shape), persistent=False)

    def encode(self, video: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Float [B, 3, 4k + 1, H, W] in [-1, 1] -> normalised latents float32 [B, 16, 1 + k, H/8, W/8].

        Args:
            generator: draws the latents from the posterior; without it they are the posterior's mode.
        """
        check_video(video)
        samples, frames = video.shape[0], 1 + (video.shape[2] - 1) // TEMPORAL_FACTOR
        rows, columns = (side // SPATIAL_FACTOR for side in video.shape[3:])
        moments = video.new_zeros(samples, 2 * LATENT_CHANNELS, frames, rows, columns, dtype=torch.float32)
        for part in self._parts(samples, rows, columns, ENCODE_FLOATS, scale=1):
            weight = part.weight.to(video.device)
            tile = video[part.samples, :, :, _pixels(part.rows), _pixels(part.columns)]
            for frame, chunk in enumerate(self._encode_chunks(tile)):
                moments[part.samples, :, frame : frame + 1, part.rows, part.columns] += weight * chunk
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        posterior = DiagonalGaussianDistribution(moments)
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return (latents - self._mean) / self._std

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, T, h, w] -> video float32 [B, 3, 4(T - 1) + 1, 8h, 8w], clamped to [-1, 1].

        Gradients flow to the latents, and are zero where a pixel was clamped. With them all activations are kept: the
        bound on memory holds without.
        """
        check_latents(latents)
        samples, _, frames, rows, columns = latents.shape
        size = 1 + (frames - 1) * TEMPORAL_FACTOR, rows * SPATIAL_FACTOR, columns * SPATIAL_FACTOR
        video = latents.new_zeros(samples, 3, *size, dtype=torch.float32)
        for part in self._parts(samples, rows, columns, DECODE_FLOATS, scale=SPATIAL_FACTOR):
            weight = part.weight.to(video.device)
            y, x = _pixels(part.rows), _pixels(part.columns)
            first = 0
            for chunk in self._decode_chunks(latents[part.samples, :, :, part.rows, part.columns]):
                video[part.samples, :, first : first + chunk.shape[2], y, x] += weight * chunk
                first += chunk.shape[2]
        return video.clamp_(-1, 1)

    def decode_first_frame(self, latents: Tensor) -> Tensor:
        """The first frame [B, 3, 1, 8h, 8w]: ``decode(latents)[:, :, :1]`` to the bit, at the cost of one latent frame.

        The VAE is causal, so no other latent frame has a gradient from it.
        """
        check_latents(latents)
        return self.decode(latents[:, :, :1])

    def _encode_chunks(self, video: Tensor) -> Iterator[Tensor]:
        """The posterior's moments [B, 32, 1, h, w] of the first frame, then of each four that follow."""
        cache = _empty_cache(self.vae.encoder)
        for start in range(1 - TEMPORAL_FACTOR, video.shape[2], TEMPORAL_FACTOR):
            frames = video[:, :, max(start, 0) : start + TEMPORAL_FACTOR].to(self.vae.dtype)
            yield self.vae.quant_conv(self.vae.encoder(frames, feat_cache=cache, feat_idx=[0])).float()

    def _decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        """The first frame, then four for each latent frame that follows: [B, 3, 1 or 4, H, W], not clamped."""
        cache = _empty_cache(self.vae.decoder)
        for frame in range(latents.shape[2]):
            z = (latents[:, :, frame : frame + 1].float() * self._std + self._mean).to(self.vae.dtype)
            yield self.vae.decoder(self.vae.post_quant_conv(z), feat_cache=cache, feat_idx=[0]).float()

    def _parts(self, samples: int, rows: int, columns: int, floats: int, scale: int) -> Iterator["_Part"]:
        """What to run one after the other, each within the bound on memory: all samples, or fewer, or one in tiles."""
        side, together = max(rows, columns), samples
        if self.memory_bytes is not None:
            side = self._tile_side(rows, columns, floats)
            whole = side >= max(rows, columns)
            together = self.memory_bytes // self.tile_bytes(rows, columns, floats) if whole else 1
        for first in range(0, samples, together):
            for y, row_weight in _tiles(rows, side, scale):
                for x, column_weight in _tiles(columns, side, scale):
                    yield _Part(slice(first, first + together), y, x, torch.outer(row_weight, column_weight))

    def _tile_side(self, rows: int, columns: int, floats: int) -> int:
        """The side of the largest tile within the bound, in latent pixels; the frame's longer side if all of it is."""
        assert self.memory_bytes is not None
        side = max(rows, columns)
        while (needed := self.tile_bytes(min(side, rows), min(side, columns), floats)) > self.memory_bytes:
            if side <= LEAST_TILE:
                raise ValueError(
                    f"memory_bytes is {self.memory_bytes:,}, and the smallest tile takes {needed:,}: give at least that"
                )
            side -= 1
        return side

    def tile_bytes(self, rows: int, columns: int, floats: int) -> int:
        """The bound on what one sample takes in one tile of latent pixels."""
        pixels = rows * columns * SPATIAL_FACTOR**2
        attention = 3 * (rows * columns) ** 2
        return self.vae.dtype.itemsize * (floats * self._base_dim * pixels + attention)


@dataclass(frozen=True)
class _Part:
    """A tile of some samples: slices of samples, latent rows and latent columns, and its weight in the result."""

    samples: slice
    rows: slice
    columns: slice
    weight: Tensor


def _tiles(length: int, side: int, scale: int) -> Iterator[tuple[slice, Tensor]]:
    """Tiles of equal length along one side of a frame, evenly spaced, which overlap by a quarter or more.

    Yields:
        Where the tile lies, in latent pixels, and its weights [side * scale]: a trapezoid, as a share of all tiles'.
    """
    side = min(side, length)
    overlap = side // OVERLAP
    count = 1 if side == length else math.ceil((length - overlap) / (side - overlap))
    starts = [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]
    distance = torch.arange(side * scale) + 0.5
    trapezoid = torch.minimum(distance, distance.flip(0)).clamp(max=max(overlap * scale, 0.5))
    total = torch.zeros(length * scale)
    for start in starts:
        total[start * scale : (start + side) * scale] += trapezoid
    for start in starts:
        yield slice(start, start + side), trapezoid / total[start * scale : (start + side) * scale]


def _pixels(latent: slice) -> slice:
    return slice(latent.start * SPATIAL_FACTOR, latent.stop * SPATIAL_FACTOR)


def _empty_cache(network: nn.Module) -> list[Tensor | None]:
    """A place for the last frames before each causal convolution."""
    return [None] * sum(isinstance(module, nn.Conv3d) for module in network.modules())


def load_wan_codec(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, memory_bytes: int | None = None
) -> WanCodec:
    """The codec from a ``vae`` folder in the diffusers layout: config.json and safetensors. Nothing is fetched.

    Args:
        dtype: of the weights and of the work. The published weights are meant for float32.
        memory_bytes: the bound on working memory (see the module).

    Raises:
        FileNotFoundError: the folder or a file is missing; it is named.
        ValueError: weights are missing or of another shape, or it is not Wan2.1's VAE.
    """
    folder = Path(folder)
    name = "diffusion_pytorch_model.safetensors"
    weights = [folder / name]
    if (folder / f"{name}.index.json").is_file() and not weights[0].is_file():
        shards = json.loads((folder / f"{name}.index.json").read_text())["weight_map"].values()
        weights = [folder / shard for shard in sorted(set(shards))]
    missing = [str(path) for path in (folder / "config.json", *weights) if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"the VAE is not complete; missing: {', '.join(missing)}. {folder} should be the vae folder of a "
            "ContentV or Wan2.1 checkpoint in the diffusers layout"
        )
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(folder, local_files_only=True))
    _checked_config(vae)
    state = {name: weight.to(dtype) for path in weights for name, weight in load_file(path).items()}
    try:
        vae.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder}: the weights do not fit config.json. {error}") from None
    return WanCodec(vae, memory_bytes=memory_bytes)


def _checked_config(vae: "AutoencoderKLWan") -> Any:
    """The VAE's configuration. ValueError unless it has the codec's channels and factors, and their statistics."""
    config: Any = vae.config
    found = (config.z_dim, config.scale_factor_temporal, config.scale_factor_spatial)
    wanted = (LATENT_CHANNELS, TEMPORAL_FACTOR, SPATIAL_FACTOR)
    if found != wanted or config.patch_size or config.is_residual:
        raise ValueError(
            f"the VAE has {found[0]} latent channels and factors of {found[1]} in time and {found[2]} in space, not "
            f"Wan2.1's {wanted[0]}, {wanted[1]} and {wanted[2]}: is it Wan2.2's?"
        )
    if not len(config.latents_mean) == len(config.latents_std) == LATENT_CHANNELS or min(config.latents_std) <= 0:
        raise ValueError(f"the VAE's latents_mean and latents_std are not {LATENT_CHANNELS} means and deviations")
    return config
