"""How well the speeds of camera and subject are measured, on scenes whose speeds are known and on real footage.

    python -m benchmarks.motion [--media ../shared/media] [--scenes 72] [--seed 3]

Scenes are drawn at random, by the seed: a camera that pans, zooms or turns over a photograph, or a still camera before
which a disc circles; speeds over two decades, 12 to 60 frames per second, three sizes. Every scene is encoded with
H.264 and goes through the real scan and frame store; so do the same scene at half the size and at half the frame rate.
Real footage is measured clip by clip, as it is cut; where nothing moves, its scores are compared with 0.002.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pool
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

from benchmarks.sample_scenes import encode
from tasks.curation.cut import CutConfig, clips_of
from tasks.curation.decode import decode
from tasks.curation.motion import MotionConfig, clip_speeds
from tasks.curation.scan import ScanConfig
from tasks.tables.frame_store import FramePair, FrameStore
from tasks.tables.picture import Image

SECONDS = 2.6
FOOTAGE_S = 12.0
TEXTURE_MIN = 3.0  # grey levels: a cell of a plate with less contrast shows no motion
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
    """The two of scikit-learn, and frames of the real videos that are there and textured all over."""
    found = {name: np.asarray(load_sample_image(f"{name}.jpg"), np.uint8) for name in ("china", "flower")}
    for path in sorted(media.glob("*.mp4")):
        frames = decoded(path, 4.0)[0]
        found |= {f"{path.stem} {at}": frames[at] for at in (len(frames) // 2, len(frames) - 1)}
    return {name: photo for name, photo in found.items() if textured(photo) > 0.75}


def textured(photo: Image) -> float:
    """The share of the 8 x 8 cells of a picture in which something could be seen to move."""
    grey = cv2.resize(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), (256, 256), interpolation=cv2.INTER_AREA)
    cells = grey.reshape(8, 32, 8, 32).std(axis=(1, 3))
    return float((cells > TEXTURE_MIN).mean())


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


def scenes(photos: dict[str, Image], count: int, seed: int) -> list[Case]:
    """Every second one a moving camera, every second one a still camera before a moving subject."""
    draw = np.random.default_rng(seed)

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(draw.uniform(np.log(low), np.log(high))))

    made = []
    for i in range(count):
        name, other = draw.choice(list(photos), 2)
        width, height = [(640, 360), (640, 360), (1280, 720), (360, 640)][draw.integers(4)]
        shape = {"fps": int(draw.choice([12, 15, 24, 25, 30, 50, 60])), "crf": int(draw.integers(18, 29))}
        shape |= {"width": width, "height": height}
        if i % 2:
            wall = draw.random() < 0.2
            ground = np.full((360, 640, 3), 128, np.uint8) if wall else photos[name]
            area, speed = log_uniform(0.015, 0.35), log_uniform(0.02, 0.5)
            title = f"subject {area:.0%} {speed:.3f} {'wall' if wall else name}"
            made.append(Case(title, ground, subject=photos[other], area=area, speed=speed, **shape))
            continue
        speed, kind = log_uniform(0.008, 0.8), ["pan", "pan", "zoom", "turn"][draw.integers(4)]
        sign = float(draw.choice([-1, 1]))
        motion = {
            "pan": {"pan": speed, "angle": float(draw.uniform(0, 2 * np.pi))},
            "zoom": {"zoom": sign * min(4 * speed, 0.8)},
            "turn": {"turn": sign * min(3 * speed, 1.0)},
        }[kind]
        made.append(Case(f"{kind} {speed:.3f} {name}", photos[name], **motion, **shape))
    return made


@dataclass
class Recording:
    """What the frame store holds of a video, and the clips it is cut into."""

    clips: list[tuple[float, float]] = field(default_factory=list)
    pairs: list[list[FramePair]] = field(default_factory=list)
    scan_s: float = 0.0


def recorded(
    frames: Iterator[Image] | Sequence[Image], fps: float, crf: int = 20, clips: Sequence[tuple[float, float]] = ()
) -> Recording:
    """A video of these frames, scanned; its pairs in the given clips, or else in those it is cut into."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        encode(path, iter(frames), fps, crf=crf)
        start = time.thread_time()
        row = decode(str(path), folder, ScanConfig().samples_per_s)
        made = Recording(list(clips), [], time.thread_time() - start)
        if not made.clips:
            cuts = clips_of(
                row | {"frames_uri": "", "source_id": "it", "rejected_by": []}, folder, CutConfig(clip_min_s=2.0)
            )
            made.clips = [(clip["start_s"], clip["end_s"]) for clip in cuts if not clip["rejected_by"]]
        with open(Path(folder, "samples.parquet"), "rb") as file:
            store = FrameStore(file)
            made.pairs = [store.pairs(*clip, MotionConfig().pairs_max) for clip in made.clips]
    return made


def departure(a: Speeds, b: Speeds) -> list[float]:
    """Relative differences of the three scores; of scores that are no motion to speak of (0.002), against that."""
    three: list[NDArray[np.float64]] = [np.array([*s, (s[0] + s[1]) / 2]) for s in (a, b)]
    return (np.abs(three[0] - three[1]) / np.maximum(three[0], 0.002)).tolist()


@dataclass
class Result:
    name: str
    full: Speeds
    size: list[float]  # departures of the three scores at half the size
    rate: list[float]
    camera: bool | None = None  # moves; None for real footage, where nobody knows
    truth: str = ""
    pairs: int = 0
    scan_s: float = 0.0
    motion_s: float = 0.0


def measure_scene(case: Case) -> Result:
    whole = [(0.0, SECONDS + 1)]
    video = recorded(case.frames(), case.fps, case.crf, whole)
    small = recorded(case.frames(half_size=True), case.fps, case.crf, whole)
    slow = recorded(case.frames(half_rate=True), case.fps / 2, case.crf, whole)
    start = time.thread_time()
    full = clip_speeds(video.pairs[0])
    spent = time.thread_time() - start
    size, rate = (departure(full, clip_speeds(other.pairs[0])) for other in (small, slow))
    truth, count = f"{case.background_speed:.4f}, {case.speed:.4f}", len(video.pairs[0])
    return Result(case.name, full, size, rate, case.subject is None, truth, count, video.scan_s, spent)


def measure_footage(path: Path) -> list[Result]:
    frames, fps = decoded(path, FOOTAGE_S)
    video = recorded(frames, fps)
    if not video.clips:
        return []
    small = recorded([halved(frame) for frame in frames], fps, clips=video.clips)
    slow = recorded(frames[::2], fps / 2, clips=video.clips)
    found = []
    for clip, *three in zip(video.clips, video.pairs, small.pairs, slow.pairs, strict=True):
        if all(three):
            full, half, fewer = (clip_speeds(pairs) for pairs in three)
            name = f"{path.name} {clip[0]:.1f}-{clip[1]:.1f} s"
            found.append(Result(name, full, departure(full, half), departure(full, fewer)))
    return found


def summary(name: str, results: list[Result]) -> None:
    for what, departures in (
        ("size", [value for result in results for value in result.size]),
        ("rate", [value for result in results for value in result.rate]),
    ):
        a = np.array(departures)
        print(f"half {what}, {name:22} median {np.median(a):.1%}  within 10 %: {(a <= 0.1).sum()} of {len(a)} scores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, default=Path("../shared/media"))
    parser.add_argument("--scenes", type=int, default=72)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    cases = scenes(photographs(args.media), args.scenes, args.seed)
    print(f"{'':38} {'bg':>8} {'fg':>8}   {'true bg, fg':18} {'half size':>6} half rate")
    results: list[Result] = []
    with Pool() as pool:
        measured = pool.imap(measure_scene, cases)
        footage = pool.imap(measure_footage, sorted(args.media.glob("*.mp4")))
        for some in itertools.chain(([one] for one in measured), footage):
            for result in some:
                results.append(result)
                bg, fg, size, rate = *result.full, max(result.size), max(result.rate)
                print(f"{result.name:38} {bg:8.4f} {fg:8.4f}   {result.truth:18} {size:6.1%} {rate:6.1%}", flush=True)
    print()
    drawn, real = ([r for r in results if (r.camera is None) == footage] for footage in (False, True))
    for camera, kind in ((True, "moving camera: fg / bg"), (False, "moving subject: bg / fg")):
        ratios = [r.full[camera] / max(r.full[not camera], 1e-9) for r in drawn if r.camera == camera]
        under = sum(ratio < 0.1 for ratio in ratios)
        print(f"{kind:34} median {np.median(ratios):.1%}  under 10 %: {under} of {len(ratios)} scenes")
    summary("drawn scenes", drawn)
    if real:
        summary("real clips", real)
    count = sum(r.pairs for r in drawn) / 1e3
    spent, scanned = (sum(getattr(r, name) for r in drawn) / count for name in ("motion_s", "scan_s"))
    print(f"motion {spent:.1f} ms a pair of CPU, scan (decode, track, JPEG) {scanned:.1f} ms")


if __name__ == "__main__":
    main()
