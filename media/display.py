"""Decoded frames of video as a viewer sees them: square pixels, upright, in sRGB.

One ``Display`` reads the frames of one size of one stream, for the tasks that measure and for training alike.

Interlaced frames hold two moments, in the even and the odd rows. Only the first field is read, so that nothing
measures the comb between the two; such a picture has half of its rows, stretched to full height, and so less detail
to measure. So has a progressive picture that its stream tags as interlaced (PsF): the pixels alone cannot tell.
"""

from fractions import Fraction
from functools import cache
from typing import Any

import av
import cv2
import numpy as np
from av.video.format import VideoFormat
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from media.colour import is_srgb, matrix_of, to_srgb
from media.orientation import Orientation

Image = NDArray[np.uint8]

# Widest pixels in use: 352x576 shown as 16:9 has 32:11 (ITU-T H.264, table E-1). Beyond is a broken header.
PIXEL_ASPECT_MAX = Fraction(3)

BACKGROUND = 255  # what a see-through picture is laid over: white, as on a page


def fit(width: int, height: int, longest: int | None) -> tuple[int, int]:
    """The size (width, height) of a picture scaled down, never up, to at most ``longest`` on its longest side."""
    scale = min(1.0, longest / max(width, height)) if longest else 1.0
    return max(1, round(width * scale)), max(1, round(height * scale))


def pixel_aspect(told: Fraction | None) -> float:
    """Width of a pixel over its height; 1 where the header tells nothing, or what no display has had."""
    return float(told) if told and 1 / PIXEL_ASPECT_MAX <= told <= PIXEL_ASPECT_MAX else 1.0


class Display:
    """Reads the decoded frames of one size of one stream. Not for several threads at once.

    Attributes:
        width, height: of the picture as displayed, in square pixels.
        stored: width and height of the frames that it reads; a frame of another size wants another ``Display``.
    """

    def __init__(self, stored: tuple[int, int], aspect: float, orientation: Orientation) -> None:
        self.stored = stored
        self._square = max(1, round(stored[0] * aspect)), stored[1]
        self._orientation = orientation
        self.width, self.height = orientation.size(*self._square)
        self._picture_scaler = VideoReformatter()  # one scaler each, as a change of size costs a new context
        self._small_scaler = VideoReformatter()

    @classmethod
    def of(cls, frame: av.VideoFrame, sample_aspect: Fraction | None) -> "Display":
        """How ``frame`` and those after it are displayed; ``sample_aspect`` is the stream's pixel aspect ratio."""
        return cls((frame.width, frame.height), pixel_aspect(sample_aspect), Orientation.of_frame(frame))

    def picture(self, frame: av.VideoFrame, longest: int | None = None) -> Image:
        """RGB uint8 [h, w, 3]: the frame upright, in square pixels, its longest side at most ``longest``.

        BadSource: its colours are stored in a way that cannot be read.
        """
        size = fit(*self._square, longest)
        return self._orientation.upright(_rgb(self._picture_scaler, frame, size, Interpolation.AREA))

    def small(self, frame: av.VideoFrame, longest: int) -> Image:
        """RGB uint8 [h, w, 3]: the frame quickly and as it is stored, neither turned nor in square pixels.

        For what is compared with its like, frame by frame; colours are those of ``picture``. BadSource: as there.
        """
        size = fit(frame.width, frame.height, longest)
        return _rgb(self._small_scaler, frame, size, Interpolation.FAST_BILINEAR)


def _rgb(scaler: VideoReformatter, frame: av.VideoFrame, size: tuple[int, int], method: Interpolation) -> Image:
    """The frame scaled to ``size`` (width, height) and then made sRGB; only its first field where it has two."""
    matrix = matrix_of(frame)
    plain, see_through = is_srgb(frame.color_trc, frame.color_primaries), has_alpha(frame.format.name)
    kind = ("rgba" if see_through else "rgb24") if plain else ("rgba64le" if see_through else "rgb48le")
    field = first_field(frame) if frame.interlaced_frame and frame.height > 1 else frame
    # What is see-through is scaled once it lies on its background: colours that hide in what cannot be seen would else
    # run into what can.
    first_size = (field.width, frame.height) if see_through else size
    # One thread: sources are read side by side, and a picture is soon scaled.
    scaled = scaler.reformat(
        field, *first_size, kind, src_colorspace=matrix, dst_colorspace=matrix, interpolation=method, threads=1
    )
    pixels: Any = scaled.to_ndarray()
    colours = pixels[..., :3] if see_through else pixels
    image: Image = colours if plain else to_srgb(colours, frame.color_trc, frame.color_primaries)
    if not see_through:
        return image
    image = over_background(image, pixels[..., 3] / (255 if plain else 65535))
    if size == first_size:
        return image
    smooth = cv2.INTER_AREA if size <= first_size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=smooth), np.uint8)


def over_background(image: Image, alpha: NDArray[np.floating]) -> Image:
    """RGB uint8 [h, w, 3] laid over BACKGROUND by its opacity ``alpha`` [h, w], 0 to 1."""
    if alpha.min() == 1:  # as most pictures that could be see-through
        return np.ascontiguousarray(image)
    mixed = image * alpha[..., None] + BACKGROUND * (1 - alpha[..., None])
    return np.rint(mixed).astype(np.uint8)


def first_field(frame: av.VideoFrame) -> av.VideoFrame:
    """The even rows of every plane of an interlaced frame, as a frame of half the height.

    In 4:2:0 the rows of chroma belong to the fields in turn, as those of luma do, so that all planes are halved alike.
    """
    field = av.VideoFrame(frame.width, (frame.height + 1) // 2, frame.format.name)
    for whole, half in zip(frame.planes, field.planes, strict=True):
        into, columns = _rows(half), min(whole.line_size, half.line_size)
        into[:, :columns] = _rows(whole)[::2][: len(into), :columns]
    field.colorspace, field.color_range = frame.colorspace, frame.color_range
    return field


def _rows(plane: Any) -> Image:
    """The bytes of a plane, [rows, bytes of a row], in place."""
    return np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size].reshape(plane.height, -1)


@cache
def has_alpha(pixel_format: str) -> bool:
    """Whether pixels of FFmpeg's ``pixel_format`` have an opacity of their own."""
    form = VideoFormat(pixel_format)
    return form.has_palette or any(component.is_alpha for component in form.components)
