"""What a video codec is to the rest of the project: pixels to latents and back, in one shape contract.

A video is [B, 3, F, H, W] in [-1, 1] with F = 4k + 1; an image is a video of one frame. Its latents are
[B, 16, 1 + (F - 1) / 4, H / 8, W / 8], normalised to about zero mean and unit variance in every channel. The first
latent frame holds the first frame alone, each later one the next four (report, section 4.2: ct = 4, cs = 8, C = 16).
"""

from typing import Protocol

from torch import Tensor

LATENT_CHANNELS = 16
TEMPORAL_FACTOR = 4
SPATIAL_FACTOR = 8
MODEL_MULTIPLE = 16  # the transformer's patches are 2x2 latent pixels


class VideoCodec(Protocol):
    """Encodes videos and images, and decodes them.

    Codecs are frozen: nothing in them learns. Gradients do flow through ``decode`` and ``decode_first_frame`` to the
    latents, and are zero where a pixel was clamped to [-1, 1].
    """

    latent_channels: int
    temporal_factor: int
    spatial_factor: int

    def encode(self, video: Tensor) -> Tensor:
        """Float [B, 3, F, H, W] in [-1, 1] -> normalised latents [B, 16, T, H/8, W/8]. ValueError for other shapes."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, T, h, w] -> video [B, 3, 4(T - 1) + 1, 8h, 8w] in [-1, 1]."""
        ...

    def decode_first_frame(self, latents: Tensor) -> Tensor:
        """The first frame [B, 3, 1, 8h, 8w], from the first latent frame alone: the same pixels as of ``decode``."""
        ...


def latent_shape(frames: int, height: int, width: int, *, multiple: int = MODEL_MULTIPLE) -> tuple[int, int, int]:
    """The latent frames, rows and columns (T, h, w) of a video.

    Args:
        multiple: what the sides must be a multiple of: 16 pixels for the transformer, 8 for a codec alone.

    Raises:
        ValueError: the number of frames is not 4k + 1, or a side does not fit. It names what would.
    """
    if frames < 1 or frames % TEMPORAL_FACTOR != 1:
        raise ValueError(
            f"{frames} frames do not fill the codec's groups of {TEMPORAL_FACTOR} after the first frame; "
            f"it takes {TEMPORAL_FACTOR}k + 1 frames, and the nearest is {_nearest(frames, TEMPORAL_FACTOR, 1)}"
        )
    for name, side in (("height", height), ("width", width)):
        if side < multiple or side % multiple:
            raise ValueError(
                f"{name} {side} is not a multiple of {multiple} pixels; the nearest is {_nearest(side, multiple, 0)}"
            )
    return 1 + (frames - 1) // TEMPORAL_FACTOR, height // SPATIAL_FACTOR, width // SPATIAL_FACTOR


def check_video(video: Tensor) -> None:
    """ValueError unless the tensor is float [B, 3, 4k + 1, H, W] with sides that are multiples of 8."""
    if video.ndim != 5 or video.shape[1] != 3 or not video.shape[0]:
        raise ValueError(f"a video is [batch, 3, frames, height, width], not {list(video.shape)}")
    if not video.is_floating_point():
        raise ValueError(f"a video is of floats in [-1, 1], not {video.dtype}; bytes become that as x / 127.5 - 1")
    latent_shape(*video.shape[2:], multiple=SPATIAL_FACTOR)


def check_latents(latents: Tensor) -> None:
    """ValueError unless the tensor is float [B, 16, T, h, w]."""
    if latents.ndim != 5 or latents.shape[1] != LATENT_CHANNELS or not latents.numel():
        raise ValueError(
            f"latents are [batch, {LATENT_CHANNELS}, latent frames, height / {SPATIAL_FACTOR}, "
            f"width / {SPATIAL_FACTOR}], not {list(latents.shape)}"
        )
    if not latents.is_floating_point():
        raise ValueError(f"latents are of floats, not {latents.dtype}")


def _nearest(value: int, step: int, offset: int) -> str:
    """The number or numbers of the form step * k + offset, above zero, that are nearest to the value."""
    below = (value - offset) // step * step + offset
    above = below + step
    least = offset or step
    if below < least:
        return str(max(above, least) if below + step >= least else least)
    if value - below == above - value:
        return f"{below} or {above}"
    return str(below if value - below < above - value else above)
