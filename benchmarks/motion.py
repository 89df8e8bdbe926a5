"""How well the speeds of camera and subject are measured, on scenes whose speeds are known and on real footage.

    python -m benchmarks.motion [--media ../shared/media] [--quick]

Every scene is encoded with H.264 and goes through the real scan and frame store; so do the same scene at half the size
and at half the frame rate.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

from benchmarks.sample_scenes import encode
from tasks.frame_store import FramePair, FrameStore, Image
from tasks.motion import clip_speeds
from tasks.scan import ScanConfig, scan_source

SECONDS = 2.6
CLIP_S = 6.0
Speeds = tuple[float, float]  # of background and foreground, frame diagonals per second


@dataclass(frozen=True)
class Case:
    """A camera over a photograph: ``pan`` in diagonals/s, ``zoom`` in 1/s, ``turn`` in radians/s; a disc of a fraction
    ``area`` of the frame that circles at ``speed`` in front of it."""

    name: str
    photo: Image
    pan: float = 0.0
    angle: float = 0.3
    zoom: float = 0.0
    turn: float = 0.0
    subject: Image | None = None
    area: float = 0.0
    speed: float = 0.0
    fps: int = 24
    crf: int = 22
    width: int = 640
    height: int = 360

    @property
    def background_speed(self) -> float:
        ys, xs = np.mgrid[-31:32:2, -31:32:2] / 64
        diagonal = np.hypot(self.width, self.height)
        x, y = xs * self.width / diagonal, ys * self.height / diagonal
        vx = self.pan * np.cos(self.angle) + self.zoom * x - self.turn * y
        vy = self.pan * np.sin(self.angle) + self.zoom * y + self.turn * x
        return float(np.hypot(vx, vy).mean())

    def frames(self, half_size: bool = False, half_rate: bool = False) -> Iterator[Image]:
        plate, size = covering(self.photo, self.width, self.height), (self.width, self.height)
        diagonal, flags = float(np.hypot(*size)), cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        xs, ys = np.meshgrid(np.arange(self.width) - self.width / 2, np.arange(self.height) - self.height / 2)
        for i in range(0, round(SECONDS * self.fps), 2 if half_rate else 1):
            t = i / self.fps - SECONDS / 2
            cos, sin = np.cos(self.turn * t) / np.exp(self.zoom * t), np.sin(self.turn * t) / np.exp(self.zoom * t)
            matrix = np.array([[cos, sin, 0], [-sin, cos, 0]])
            shift = np.array([np.cos(self.angle), np.sin(self.angle)]) * self.pan * diagonal * t
            matrix[:, 2] = np.array(plate.shape[1::-1]) / 2 - matrix[:, :2] @ ((np.array(size) - 1) / 2) - shift
            seen = cv2.warpAffine(plate, matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
            frame = np.asarray(seen, np.uint8)
            if self.subject is not None:
                orbit = 0.12 * diagonal
                x, y = (orbit * f(self.speed * diagonal / orbit * t + 1) for f in (np.cos, np.sin))
                cloth = covering(self.subject, self.width, self.height)
                place = np.array([[1, 0, x], [0, 1, y]])
                disc = cv2.warpAffine(cloth, place, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
                radius = np.sqrt(self.area * self.width * self.height / np.pi)
                alpha = np.clip(radius - np.hypot(xs - x, ys - y) + 0.5, 0, 1)[..., None]
                frame = (frame * (1 - alpha) + disc * alpha).astype(np.uint8)
            yield halved(frame) if half_size else frame


def halved(frame: Image) -> Image:
    size = frame.shape[1] // 4 * 2, frame.shape[0] // 4 * 2
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def covering(photo: Image, width: int, height: int) -> Image:
    scale = 1.1 * max(width / photo.shape[1], height / photo.shape[0])
    filter_ = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(photo, None, fx=scale, fy=scale, interpolation=filter_), np.uint8)


def photographs(media: Path) -> dict[str, Image]:
    """The two of scikit-learn, and a frame of every real video that is there."""
    found = {name: np.asarray(load_sample_image(f"{name}.jpg"), np.uint8) for name in ("china", "flower")}
    for name in ("fv_motorcycle", "psd_testvideo", "dj_video4", "va_1_A", "ft_hiker"):
        if (media / f"{name}.mp4").exists():
            frames = decoded(media / f"{name}.mp4", 1.5)[0]
            found[name] = frames[-1]
    return found


def decoded(path: Path, seconds: float) -> tuple[list[Image], float]:
    """The first frames of a video, at most 1280 wide, and its frame rate."""
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 25)
        frames: list[Image] = []
        for frame in container.decode(video=0):
            scale = min(1.0, 1280 / frame.width)
            width, height = (int(n * scale) // 2 * 2 for n in (frame.width, frame.height))
            frames.append(np.asarray(frame.to_ndarray(width=width, height=height, format="rgb24"), np.uint8))
            if len(frames) >= seconds * rate:
                break
    return frames, rate


def cases(photos: dict[str, Image], quick: bool) -> list[Case]:
    names, made = list(photos), []
    wall = np.full((360, 640, 3), 128, np.uint8)
    for i, name in enumerate(names):
        photo, fps = photos[name], (24, 30, 25, 60, 12)[i % 5]
        made += [
            Case(f"pan {speed} {name}", photo, pan=speed, angle=1.3 * i, fps=fps, crf=20 + 6 * (i % 2))
            for speed in (0.01, 0.05, 0.3, 1.0)[i % 2 :: 2]
        ]
        made.append(Case(f"zoom {name}", photo, zoom=(0.05, 0.2, -0.5)[i % 3], fps=(30, 24)[i % 2]))
        made.append(Case(f"rotation {name}", photo, turn=(0.05, 0.2, -0.6)[i % 3]))
        for k, area in enumerate((0.02, 0.1, 0.35)):
            speed, other = (0.02, 0.1, 0.4)[(i + k) % 3], photos[names[(i + 1) % len(names)]]
            ground = wall if (i + k) % 4 == 0 else photo
            title = f"subject {area:.0%} {speed} {'wall' if ground is wall else name}"
            made.append(Case(title, ground, subject=other, area=area, speed=speed, fps=(24, 30)[k % 2]))
    return made[::4] if quick else made


def pairs_of(frames: Iterator[Image] | Sequence[Image], fps: float, crf: int = 20) -> tuple[list[FramePair], float]:
    """What the frame store holds of a video of these frames, and the seconds that its scan took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        encode(path, iter(frames), fps, crf=crf)
        start = time.thread_time()
        row = scan_source(str(path), folder, ScanConfig())
        taken = time.thread_time() - start
        with open(Path(folder, "samples.parquet"), "rb") as file:
            return FrameStore(file).pairs(row["start_s"], row["end_s"], 12), taken


def departure(a: Speeds, b: Speeds) -> list[float]:
    """Relative differences of the three scores; of scores that are no motion to speak of (0.002), against that."""
    three: list[NDArray[np.float64]] = [np.array([*s, (s[0] + s[1]) / 2]) for s in (a, b)]
    return (np.abs(three[0] - three[1]) / np.maximum(three[0], 0.002)).tolist()


def show(name: str, truth: str, full: Speeds, size: list[float], rate: list[float]) -> None:
    print(f"{name:34} {full[0]:8.4f} {full[1]:8.4f}   {truth:18} {max(size):6.1%} {max(rate):6.1%}", flush=True)


def summary(name: str, values: list[float]) -> None:
    a = np.array(values)
    print(f"{name:34} median {np.median(a):.1%}  max {a.max():.1%}  within 10 %: {(a <= 0.1).sum()} of {len(a)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, default=Path("../shared/media"))
    parser.add_argument("--quick", action="store_true", help="every fourth synthetic scene, no real footage")
    args = parser.parse_args()
    ratios: dict[str, list[float]] = {"pan, zoom, rotation: fg / bg": [], "subject: bg / fg": []}
    size: dict[str, list[float]] = {"synthetic": [], "real": []}
    rate: dict[str, list[float]] = {"synthetic": [], "real": []}
    spent = scanned = count = 0.0
    print(f"{'':34} {'bg':>8} {'fg':>8}   {'true bg, fg':18} {'half size':>6} half rate")
    for case in cases(photographs(args.media), args.quick):
        pairs, seconds = pairs_of(case.frames(), case.fps, case.crf)
        start = time.thread_time()
        full = clip_speeds(pairs)
        spent, scanned, count = spent + time.thread_time() - start, scanned + seconds, count + len(pairs)
        small = clip_speeds(pairs_of(case.frames(half_size=True), case.fps, case.crf)[0])
        slow = clip_speeds(pairs_of(case.frames(half_rate=True), case.fps / 2, case.crf)[0])
        camera = case.subject is None
        kind = "pan, zoom, rotation: fg / bg" if camera else "subject: bg / fg"
        ratios[kind].append(full[camera] / max(full[not camera], 1e-9))
        size["synthetic"] += departure(full, small)
        rate["synthetic"] += departure(full, slow)
        truth = f"{case.background_speed:.4f}, {case.speed:.4f}"
        show(case.name, truth, full, departure(full, small), departure(full, slow))
    for path in [] if args.quick else sorted(args.media.glob("*.mp4")):
        frames, fps = decoded(path, CLIP_S)
        pairs = pairs_of(frames, fps)[0]
        if not pairs:
            continue
        full = clip_speeds(pairs)
        small, fewer = clip_speeds(pairs_of([halved(f) for f in frames], fps)[0]), pairs_of(frames[::2], fps / 2)[0]
        size["real"] += departure(full, small)
        if fewer:
            rate["real"] += departure(full, clip_speeds(fewer))
        show(path.name, "", full, departure(full, small), departure(full, clip_speeds(fewer)) if fewer else [0.0])
    print()
    for kind, values in ratios.items():
        under = sum(value < 0.1 for value in values)
        print(f"{kind:34} median {np.median(values):.1%}  max {max(values):.1%}  under 10 %: {under} of {len(values)}")
    for kind in size:
        if size[kind]:
            summary(f"half size, {kind}", size[kind])
            summary(f"half frame rate, {kind}", rate[kind])
    print(
        f"motion {spent / count * 1e3:.1f} ms a pair of CPU, scan (decode, track, JPEG) {scanned / count * 1e3:.1f} ms"
    )


if __name__ == "__main__":
    main()
