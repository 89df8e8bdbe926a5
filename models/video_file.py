"""Generated videos as files: H.264 in mp4 that says of itself how it was made, the same bytes for the same frames.

Besides the picture, a file carries three tags that any tool shows (``ffprobe -show_format``): ``prompt``, ``seed`` and
``config``, the last as JSON. There is no date in it, and the encoder runs in one thread, so that with the same release
of FFmpeg and x264 the bytes depend on frames and tags alone.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import fsspec
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray
from torch import Tensor

from media.whole_file import writing

CRF = 18  # visually near lossless; 23 is x264's own default
# The macroblock tree of x264 (core 165) reads memory that was never written: of 40 encodings of the same small frames,
# four kinds of bytes came out. Without it there is one; at 432 x 768 that costs 2 % more bytes and 0.05 dB.
X264 = {"preset": "medium", "x264-params": "mbtree=0"}
BT709 = 1  # number of these primaries and this transfer in ITU-T H.273


@dataclass(frozen=True)
class GenerationMetadata:
    """How a video was made; ``config`` holds whatever else is needed to make it again (JSON-able)."""

    prompt: str
    seed: int
    config: dict[str, Any] = field(default_factory=dict)

    def tags(self) -> dict[str, str]:
        """As tags of a container. ValueError for a text with a NUL in it, which a tag cannot hold."""
        tags = {"prompt": self.prompt, "seed": str(self.seed), "config": json.dumps(self.config, sort_keys=True)}
        if "\0" in "".join(tags.values()):
            raise ValueError("the prompt has a NUL character in it")
        return tags


def to_uint8(video: Tensor) -> Iterator[NDArray[np.uint8]]:
    """The frames, each RGB uint8 [H, W, 3], of a float video [3, F, H, W] in [-1, 1]; what lies outside is clipped."""
    for frame in video.unbind(1):
        scaled = ((frame.float().clamp(-1, 1) + 1) * 127.5).round()
        yield scaled.to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy()


def encode_video(video: Tensor, metadata: GenerationMetadata, fps: int = 24, crf: int = CRF) -> bytes:
    """A video [3, F, H, W] in [-1, 1] as the bytes of an mp4 (H.264, 4:2:0, BT.709, ready to stream).

    ValueError where it is not such a tensor, has an odd side (4:2:0 halves them) or is not finite.
    """
    if video.ndim != 4 or video.shape[0] != 3 or not video.shape[1]:
        raise ValueError(f"a video to write is [3, frames, height, width], not {list(video.shape)}")
    _, _, height, width = video.shape
    if height % 2 or width % 2:
        raise ValueError(f"H.264 in 4:2:0 needs even sides, not {width} x {height}")
    if not video.isfinite().all():
        raise ValueError("the video has values that are no numbers: it cannot be written")

    # Without use_metadata_tags the muxer keeps only the tags it knows; bitexact leaves out its own version.
    options = {"movflags": "+faststart+use_metadata_tags", "fflags": "+bitexact"}
    with TemporaryDirectory() as folder:
        written = Path(folder, "video.mp4")  # faststart reads back what it wrote, so this cannot be a buffer
        with av.open(str(written), "w", options=options) as container:
            container.metadata.update(metadata.tags())
            stream = container.add_stream("libx264", rate=fps, options=X264 | {"crf": str(crf)})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.time_base = Fraction(1, fps)
            codec = stream.codec_context
            codec.thread_count = 1
            codec.colorspace = Colorspace.ITU709
            codec.color_range = ColorRange.MPEG
            codec.color_primaries = codec.color_trc = BT709
            for image in to_uint8(video):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                    interpolation=Interpolation.BICUBIC,
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return written.read_bytes()


def write_video(video: Tensor, uri: str, metadata: GenerationMetadata, fps: int = 24, crf: int = CRF) -> None:
    """Write ``encode_video``'s bytes to a path or URI, whole or not at all."""
    content = encode_video(video, metadata, fps, crf)
    with writing(uri) as file:
        file.write(content)


def read_generation_metadata(uri: str) -> GenerationMetadata:
    """What ``write_video`` wrote beside the picture. ValueError where the file is no video, or none of ours."""
    try:
        with fsspec.open(uri, "rb") as file, av.open(file) as container:
            tags = container.metadata
            return GenerationMetadata(tags["prompt"], int(tags["seed"]), json.loads(tags["config"]))
    except KeyError as tag:
        raise ValueError(f"{uri} has no tag {tag}: it was not written by ContentV") from None
    except av.FFmpegError as problem:
        raise ValueError(f"{uri} cannot be read as a video: {problem}") from problem
