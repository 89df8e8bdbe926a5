"""Footage with known transitions, for the benchmark of shot detection.

Takes of real sources, and moving views over scikit-learn's two photographs, are joined by cuts, dissolves, fades and
wipes, or disturbed without any join, encoded as H.264 and decoded again.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector
from sklearn.datasets import load_sample_image

Frames = NDArray[np.uint8]  # RGB [T, HEIGHT, WIDTH, 3]

WIDTH, HEIGHT = 320, 180
# Sources that are flat, or have jump cuts or fades of their own: nothing to join.
UNFIT = {"cc_10s.mp4", "dj_video3.mp4", "psd_counter.mp4", "psd_delayed.mp4", "psd_fades.mp4"}
# The stretches, in seconds, of a source with fades and a dissolve of its own.
CLEAN = {"psd_testvideo.mp4": [(1.1, 5.9), (8.2, 10.9), (14.3, 17.4), (18.8, 22.0)]}
SUFFIXES = {".mp4", ".mkv", ".mov", ".avi", ".webm"}
GRADUAL = ("dissolve", "fade black", "fade white", "wipe")


@dataclass(frozen=True)
class Take:
    """Footage of one shot, from one source."""

    source: str
    fps: float
    frames: Frames


@dataclass(frozen=True)
class Join:
    """The frames ``start <= i < end`` show both members or neither; a cut has none, and begins a shot at ``start``."""

    kind: str
    start: int
    end: int


@dataclass
class Reel:
    """Decoded frames as the scan hands them to the track, and what is true of them."""

    name: str
    fps: float
    frames: list[Frames]
    joins: list[Join]


def fill(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle of the picture, WIDTH x HEIGHT."""
    scale = max(WIDTH / image.shape[1], HEIGHT / image.shape[0])
    size = max(WIDTH, round(image.shape[1] * scale)), max(HEIGHT, round(image.shape[0] * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    top, left = (size[1] - HEIGHT) // 2, (size[0] - WIDTH) // 2
    return image[top : top + HEIGHT, left : left + WIDTH]


def takes_of(path: Path, max_frames: int = 300) -> list[Take]:
    """The source's takes of a second or more, between PySceneDetect's cuts, without flat frames."""
    detector, frames, cuts = ContentDetector(min_scene_len=0), [], [0]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 25)
        for i, frame in enumerate(container.decode(stream)):
            if i == max_frames:
                break
            if not any(a <= frame.time < b for a, b in CLEAN.get(path.name, [(-np.inf, np.inf)])):
                cuts.append(len(frames))
                continue
            k = max(WIDTH / frame.width, HEIGHT / frame.height)
            small = frame.reformat(int(frame.width * k), int(frame.height * k), "rgb24", interpolation="FAST_BILINEAR")
            frames.append(fill(small.to_ndarray()))
            if detector.process_frame(FrameTimecode(i, fps), frames[-1]) or frames[-1].std() < 12:
                cuts.append(len(frames) - 1)
    cuts.append(len(frames))
    spans = [(a + 1, b - 1) for a, b in itertools.pairwise(cuts) if b - a > fps + 2]
    return [Take(path.stem, fps, np.stack(frames[a:b])) for a, b in spans]


def photograph_takes(rng: np.random.Generator, count: int = 4) -> list[Take]:
    """Views that pan and zoom over scikit-learn's two photographs."""
    takes = []
    for name in ("china.jpg", "flower.jpg"):
        photo = np.asarray(load_sample_image(name))
        for _ in range(count):
            n, corner = 150, rng.uniform(0, 1, (2, 2))
            zoom = np.linspace(*rng.uniform(0.35, 0.75, 2), n)
            along = np.linspace(*corner, n)
            views = [view(photo, zoom[t], along[t][0] * (1 - zoom[t]), along[t][1] * (1 - zoom[t])) for t in range(n)]
            takes.append(Take(name, 30.0, np.stack(views)))
    return takes


def view(image: NDArray[np.uint8], zoom: float, x: float, y: float) -> NDArray[np.uint8]:
    """The part of the picture at (x, y), ``zoom`` wide, all as fractions of its size, as a WIDTH x HEIGHT picture."""
    h, w = image.shape[:2]
    matrix = np.array([[WIDTH / (zoom * w), 0, -x / zoom * WIDTH], [0, HEIGHT / (zoom * h), -y / zoom * HEIGHT]])
    return cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)


def at_rate(take: Take, fps: float) -> Frames:
    """Nearest frames at another frame rate: repeats or leaves out frames, as players' converters do."""
    n = max(1, int(len(take.frames) * fps / take.fps))
    return take.frames[np.minimum((np.arange(n) * take.fps / fps).astype(int), len(take.frames) - 1)]


def wipe_masks(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    """How much of the new picture shows [n, HEIGHT, WIDTH, 1]: an edge that crosses the frame in n + 1 steps."""
    angle = rng.choice([0, 90, 180, 270, 45, 135, 225, 315, rng.uniform(0, 360)])
    direction = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    ys, xs = np.mgrid[0:HEIGHT, 0:WIDTH]
    place = xs / WIDTH * direction[0] + ys / HEIGHT * direction[1]
    place = (place - place.min()) / (place.max() - place.min())
    soft = rng.choice([1e-3, 1e-3, 0.03, 0.12])
    edge = np.linspace(0, 1 + soft, n + 2)[1:-1, None, None]
    return np.clip((edge - place) / soft, 0, 1)[..., None].astype(np.float32)


def mix(kind: str, rng: np.random.Generator, old: Frames, new: Frames) -> Frames:
    """The n frames of a gradual join, of the n frames of each member."""
    n = len(old)
    alpha = np.linspace(0, 1, n + 2)[1:-1, None, None, None].astype(np.float32)
    if kind.startswith("fade"):
        colour = 0.0 if kind == "fade black" else 255.0
        half = np.abs(2 * alpha - 1)  # 1 at either end, 0 at the flat middle
        member = np.where(alpha < 0.5, old, new)
        return (half * member + (1 - half) * colour).astype(np.uint8)
    if kind == "wipe":
        alpha = wipe_masks(rng, n)
    elif rng.random() < 0.3:
        alpha = alpha * alpha * (3 - 2 * alpha)  # eased in and out
    return ((1 - alpha) * old + alpha * new).astype(np.uint8)


def member(rng: np.random.Generator, take: Take, fps: float, n: int) -> Frames | None:
    """n frames of a take with a look of its own: part of the view, mirrored or not, brighter or darker."""
    frames = at_rate(take, fps)
    if len(frames) < n:
        return None
    start = rng.integers(0, len(frames) - n + 1)
    zoom = rng.choice([1.0, rng.uniform(0.6, 1.0)])
    x, y = rng.uniform(0, 1 - zoom, 2)
    gain = rng.choice([1.0, rng.uniform(0.6, 1.3)])
    flip = -1 if rng.random() < 0.5 else 1
    frames = (
        np.stack([view(f, zoom, x, y) for f in frames[start : start + n]]) if zoom < 1 else frames[start : start + n]
    )
    return np.clip(frames[:, :, ::flip] * np.float32(gain), 0, 255).astype(np.uint8)


def joined(rng: np.random.Generator, takes: list[Take], fps: float, count: int = 7) -> tuple[Frames, list[Join]]:
    """A chain of members and its joins; a tenth of them join two parts of one source."""
    sources = sorted({t.source for t in takes})
    kinds = list(rng.permutation(["cut", "cut", "dissolve", "dissolve", "fade black", "fade white", "wipe", "wipe"]))[
        :count
    ]
    parts: list[Frames] = []
    joins: list[Join] = []
    source, place = rng.choice(sources), 0
    kind_in, overlap_in = "start", 0
    tail: Frames | None = None
    for kind in [*kinds, "end"]:
        overlap = int(rng.integers(12, 41)) if kind in GRADUAL else 0
        frozen = rng.random() < 0.3
        body = int(rng.uniform(1.5, 3.5) * fps)
        need = body + (overlap_in + overlap) * (not frozen)
        while (
            frames := member(rng, rng.choice(np.array([t for t in takes if t.source == source], object)), fps, need)
        ) is None:
            source, need, body = rng.choice(sources), int(need * 0.8), int(body * 0.8)
            overlap, overlap_in_fits = (overlap if need > overlap + overlap_in else 0), need > overlap_in
            if not overlap_in_fits:
                raise ValueError("the takes are too short to join")
        if frozen:
            frames = np.concatenate([np.repeat(frames[:1], overlap_in, 0), frames, np.repeat(frames[-1:], overlap, 0)])
        if kind_in != "start":
            joins.append(Join(kind_in, place, place + overlap_in))
        if tail is not None and overlap_in:
            parts.append(mix(kind_in, rng, tail, frames[:overlap_in]))
            place += overlap_in
        middle = frames[overlap_in : len(frames) - overlap]
        parts.append(middle)
        place += len(middle)
        tail, kind_in, overlap_in = frames[len(frames) - overlap :], kind, overlap
        if kind in GRADUAL and overlap == 0:
            kind_in = "cut"
        if rng.random() < 0.9:
            source = rng.choice([s for s in sources if s != source])
    return np.concatenate(parts), joins


def disturbed(rng: np.random.Generator, takes: list[Take], fps: float) -> tuple[Frames, str]:
    """One take that moves: hand-held shaking, a whip of the camera, exposure changes, flashes or a passing object."""
    take = takes[rng.integers(len(takes))]
    frames = at_rate(take, fps)[: int(8 * fps)]
    frames = np.concatenate([frames, frames[::-1]])[: int(8 * fps)]  # there and back: never a jump
    n = len(frames)
    kind = str(rng.choice(["shake", "pan", "exposure", "flash", "passing"]))
    s = np.arange(n) / fps
    if kind in ("shake", "pan"):
        zoom = 0.6 if kind == "shake" else 0.4
        speed = rng.uniform(0.5, 2.0, 2) if kind == "shake" else rng.uniform(0.1, 0.35, 2)
        phase = rng.uniform(0, 2 * np.pi, 2)
        size = rng.uniform(0.2, 0.5) if kind == "shake" else 1.0
        xy = (0.5 + 0.5 * size * np.sin(2 * np.pi * speed * s[:, None] + phase)) * (1 - zoom)
        frames = np.stack([view(f, zoom, *p) for f, p in zip(frames, xy, strict=True)])
    elif kind == "exposure":
        gain = np.exp(rng.uniform(0.3, 0.8) * np.tanh(3 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * s)))
        frames = np.clip(frames * gain[:, None, None, None].astype(np.float32), 0, 255).astype(np.uint8)
    elif kind == "flash":
        frames = frames.copy()
        for i in rng.integers(2, n - 3, 4):
            length, colour = rng.integers(1, 4), rng.choice([255, 255, 0])
            frames[i : i + length] = (0.25 * frames[i : i + length] + 0.75 * colour).astype(np.uint8)
    else:
        frames = frames.copy()
        for begin in rng.uniform(0.5, s[-1] - 1, 3):
            width, seconds = int(rng.uniform(0.2, 0.9) * WIDTH), rng.uniform(0.4, 1.2)
            colour = rng.integers(0, 255, 3)
            texture = np.clip(colour + rng.normal(0, 12, (HEIGHT, width, 3)), 0, 255).astype(np.uint8)
            for i in np.flatnonzero((s >= begin) & (s < begin + seconds)):
                left = int((s[i] - begin) / seconds * (WIDTH + width)) - width
                shown = texture[:, max(0, -left) : max(0, WIDTH - left)]
                frames[i, :, max(0, left) : max(0, left) + shown.shape[1]] = shown
    return frames, kind


def through_codec(frames: Frames, fps: float, crf: int) -> list[Frames]:
    """Encoded as H.264, decoded, and made as small as the scan makes them."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf), "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = WIDTH, HEIGHT, "yuv420p", 1
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        out.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        decoded = list(container.decode(video=0))
    return [frame.reformat(256, 144, "rgb24", interpolation="FAST_BILINEAR").to_ndarray() for frame in decoded]


def reels(rng: np.random.Generator, takes: list[Take], count: int) -> Iterator[Reel]:
    """``count`` reels of joins, and as many without any."""
    for _ in range(count):
        fps = float(rng.choice([24, 25, 30, 30, 60, 15]))
        frames, joins = joined(rng, takes, fps)
        yield Reel("joins", fps, through_codec(frames, fps, int(rng.integers(18, 37))), joins)
        fps = float(rng.choice([24, 25, 30]))
        frames, kind = disturbed(rng, takes, fps)
        yield Reel(kind, fps, through_codec(frames, fps, int(rng.integers(18, 37))), [])
