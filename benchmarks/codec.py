"""What the lite codec keeps of real pictures, beside the best that any linear code of its size could.

    python -m benchmarks.codec [FILE_OR_FOLDER ...] [--side 128] [--frames 49] [--derive]

Without files it builds the sample library first. Each file's first frames, scaled to SIDE on the shorter side, go
through ``DctCodec`` and back: as a video, and every fourth frame as an image. PSNR is that of RGB, peak to peak, over
all pixels. The bound is the Karhunen-Loeve transform of the same footage: of all 16 linear functions of a block, those
that lose least. Both are of the squared error averaged over files, so every file counts alike.

``--derive`` prints, instead, the coefficients of greatest variance with their means and deviations: what the tables in
models/dct_codec.py are made of.
"""

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.sample_library import build
from models.codec import LATENT_CHANNELS, MODEL_MULTIPLE, TEMPORAL_FACTOR
from models.dct_codec import FIRST_FRAME, LATER_FRAMES, Coefficient, DctCodec, dct_basis, to_blocks


def read_clip(path: Path, frames: int, side: int) -> Tensor | None:
    """The first 4k + 1 frames, at most ``frames``, as a video [1, 3, F, H, W] in [-1, 1]; None if there is no picture.

    Scaled down, never up, to ``side`` on the shorter side, and cut to multiples of 16.
    """
    images = []
    try:
        with av.open(str(path)) as container:
            for frame in itertools.islice(container.decode(video=0), frames):
                image = frame.to_ndarray(format="rgb24")
                scale = min(1.0, side / min(image.shape[:2]))
                size = round(image.shape[1] * scale), round(image.shape[0] * scale)
                images.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image)
    except (av.FFmpegError, IndexError):
        pass  # what was decoded before the damage counts
    if not images:
        return None
    video = torch.from_numpy(np.stack(images[: (len(images) - 1) // TEMPORAL_FACTOR * TEMPORAL_FACTOR + 1]))
    height, width = (side // MODEL_MULTIPLE * MODEL_MULTIPLE for side in video.shape[1:3])
    return video[:, :height, :width].permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def as_images(video: Tensor) -> Tensor:
    """Every fourth frame as an image: [1, 3, F, H, W] -> [ceil(F / 4), 3, 1, H, W]."""
    return video[0, :, ::TEMPORAL_FACTOR].movedim(1, 0)[:, :, None]


def psnr(squared_error: float) -> float:
    """Decibels, for pixels from -1 to 1."""
    return 10 * math.log10(4 / squared_error) if squared_error else math.inf


class Moments:
    """Second moments of blocks of one size, and their means, each file counting alike."""

    def __init__(self, frames: int) -> None:
        self.frames, self.files = frames, 0
        size = 3 * frames * 64
        self._second, self._mean = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)

    def add(self, video: Tensor) -> None:
        """Add a file: [B, 3, a multiple of ``frames``, H, W]."""
        blocks = to_blocks(video, self.frames).flatten(0, 3).double()
        self._second += blocks.T @ blocks / len(blocks)
        self._mean += blocks.mean(0)
        self.files += 1

    def klt_error(self) -> float:
        """Mean squared error of a pixel under the 16 best linear functions."""
        dropped = torch.linalg.eigvalsh(self._second / self.files)[:-LATENT_CHANNELS]
        return float(dropped.clamp(min=0).sum() / len(self._mean))

    def coefficients(self) -> list[Coefficient]:
        """All DCT coefficients with their statistics, that of the greatest power first."""
        every = tuple(
            Coefficient(colour, t, row, column, 0.0, 0.0)
            for colour, t, row, column in itertools.product(range(3), range(self.frames), range(8), range(8))
        )
        basis = dct_basis(self.frames, every).double()
        power = torch.einsum("ic,ij,jc->c", basis, self._second / self.files, basis)
        mean = self._mean / self.files @ basis
        std = (power - mean**2).clamp(min=0).sqrt()
        return [every[i]._replace(mean=float(mean[i]), std=float(std[i])) for i in power.argsort(descending=True)]


def clips(paths: Sequence[Path], frames: int, side: int) -> Iterator[tuple[str, Tensor]]:
    """Name and video of every file that has a picture; folders stand for the files in them."""
    for path in itertools.chain.from_iterable(sorted(p.iterdir()) if p.is_dir() else [p] for p in paths):
        video = read_clip(path, frames, side)
        if video is not None:
            yield path.name, video


def report(paths: Sequence[Path], frames: int, side: int) -> None:
    """Print PSNR by file and over all, beside the bound, and how far the latents are from unit variance."""
    codec, images, groups = DctCodec(), Moments(1), Moments(TEMPORAL_FACTOR)
    errors: dict[str, list[float]] = {"image": [], "video": [], "groups": []}
    power, seconds, pixels = torch.zeros(2, LATENT_CHANNELS), 0.0, 0
    print(f"{'':24} {'frames':>6} {'size':>9}   {'image':>9} {'video':>9}")
    for name, video in clips(paths, frames, side):
        started = time.perf_counter()
        latents = codec.encode(video)
        decoded = codec.decode(latents)
        seconds, pixels = seconds + time.perf_counter() - started, pixels + video[0, 0].numel()
        still = as_images(video)
        stills = codec.encode(still)
        errors["image"].append(float((codec.decode(stills) - still).square().mean()))
        errors["video"].append(float((decoded - video).square().mean()))
        images.add(still)
        power[0] += stills.square().mean((0, 2, 3, 4))
        if video.shape[2] > 1:
            errors["groups"].append(float((decoded - video)[:, :, 1:].square().mean()))
            groups.add(video[:, :, 1:])
            power[1] += latents[:, :, 1:].square().mean((0, 2, 3, 4))
        size = f"{video.shape[4]}x{video.shape[3]}"
        shown = " ".join(f"{psnr(errors[kind][-1]):6.2f} dB" for kind in ("image", "video"))
        print(f"{name:24} {video.shape[2]:6} {size:>9}   {shown}", flush=True)
    if not groups.files:
        sys.exit("no video of five frames or more among the files")
    print(f"\n{images.files} files            codec        bound   codec - bound   latents' deviation by channel")
    for kind, moments, energy in (("image", images, power[0]), ("groups", groups, power[1])):
        ours, bound = psnr(float(np.mean(errors[kind]))), psnr(moments.klt_error())
        deviations = (energy / moments.files).sqrt()
        span = f"{deviations.min():.2f} to {deviations.max():.2f}"
        print(f"{kind:12} {ours:12.2f} dB {bound:9.2f} dB {ours - bound:9.2f} dB      {span}")
    mean = {kind: np.mean([psnr(error) for error in errors[kind]]) for kind in errors}
    print(f"mean PSNR of a file: image {mean['image']:.2f} dB, video {mean['video']:.2f} dB")
    print(f"encode and decode: {seconds / pixels * 1e9:.0f} ns a pixel on {torch.get_num_threads()} threads")


def derive(paths: Sequence[Path], frames: int, side: int, shown: int = 20) -> None:
    """Print the coefficients of greatest power with their statistics; a star marks those that the codec keeps."""
    images, groups = Moments(1), Moments(TEMPORAL_FACTOR)
    for _, video in clips(paths, frames, side):
        images.add(as_images(video))
        if video.shape[2] > 1:
            groups.add(video[:, :, 1:])
    for title, moments, kept in (("first frame", images, FIRST_FRAME), ("later frames", groups, LATER_FRAMES)):
        print(f"{title}, {moments.files} files\n  colour time row column      mean       std")
        places = {c[:4] for c in kept}
        for c in moments.coefficients()[:shown]:
            star = "*" if c[:4] in places else " "
            print(f"{star} {c.colour:6} {c.time:4} {c.row:3} {c.column:6} {c.mean:9.3f} {c.std:9.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="videos and images, or folders of them")
    parser.add_argument("--side", type=int, default=128, help="pixels of the shorter side")
    parser.add_argument("--frames", type=int, default=49, help="at most so many frames of a file")
    parser.add_argument("--derive", action="store_true", help="print the statistics of the coefficients instead")
    options = parser.parse_args()
    missing = [str(path) for path in options.files if not path.exists()]
    if missing:
        sys.exit(f"no such file or folder: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as scratch:
        if not options.files:
            print("building the sample library", flush=True)
            build(Path(scratch))
        paths = options.files or [Path(scratch) / "videos"]
        (derive if options.derive else report)(paths, options.frames, options.side)


if __name__ == "__main__":
    main()
