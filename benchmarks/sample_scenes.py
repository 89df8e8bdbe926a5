"""Scenes with known motion, and what is done to them: editing, subtitles, a logo, encoding.

A virtual camera pans or zooms over a plate, and a cut-out may move in front of it. Speeds are in frame diagonals per
second, as in the scores of the curation.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.sample_plates import (
    GRADES,
    SUBJECTS,
    Frame,
    Painter,
    Sprite,
    blossoms,
    facade,
    forest,
    garden,
    lake,
    leaves,
    meadow,
    paste,
    postcard,
    resized,
    skyline,
)

Motion = Literal["pan", "zoom", "subject", "pan+subject"]
TransitionKind = Literal["cut", "dissolve", "fade", "wipe"]
Box = tuple[int, int, int, int]  # x, y, width, height in pixels
Span = tuple[float, float]  # start and end in seconds

FPS = 24
SCENE_S = 8.0  # how long a scene lasts: its plate is painted for the way of the camera in this time


RECIPES: list[tuple[Painter, str, Motion, str]] = [
    (skyline, "day", "pan+subject", "balloon"),
    (meadow, "day", "zoom", ""),
    (lake, "day", "subject", "balloon"),
    (garden, "day", "pan", ""),
    (forest, "day", "pan", ""),
    (blossoms, "day", "pan", ""),
    (facade, "day", "pan", ""),
    (postcard, "day", "pan", ""),
    (leaves, "day", "subject", "dahlia"),
    (meadow, "dusk", "pan", ""),
    (garden, "bright", "zoom", ""),
    (lake, "autumn", "pan", ""),
    (skyline, "dusk", "subject", "balloon"),
    (forest, "autumn", "zoom", ""),
    (blossoms, "violet", "pan", ""),
    (facade, "winter", "subject", "bouquet"),
    (leaves, "autumn", "pan", ""),
    (postcard, "dusk", "pan", ""),
    (meadow, "violet", "pan+subject", "balloon"),
    (garden, "dusk", "pan", ""),
    (lake, "winter", "pan+subject", "dahlia"),
    (forest, "winter", "pan", ""),
    (skyline, "violet", "zoom", ""),
    (facade, "jungle", "pan", ""),
    (blossoms, "winter", "zoom", ""),
]


@dataclass(frozen=True)
class Scene:
    """One shot: a plate, a camera over it and perhaps a subject in front of it.

    Attributes:
        name: the plate and its grade, such as `meadow-dusk`.
        motion: what moves. `subject` has a still camera.
        width, height: of a frame, pixels.
        camera: velocity of the background on the screen, frame diagonals per second (x right, y down).
        zoom_rate: d(log scale)/dt, 1/s; positive zooms in.
        subject: velocity of the cut-out on the screen, frame diagonals per second; None where there is no cut-out.
    """

    name: str
    motion: Motion
    width: int
    height: int
    paint: Painter
    grade: str
    seed: int
    camera: tuple[float, float] = (0.0, 0.0)
    zoom_rate: float = 0.0
    subject: tuple[float, float] | None = None
    subject_kind: str = "dahlia"

    @property
    def diagonal(self) -> float:
        """Frame diagonal in pixels."""
        return float(np.hypot(self.width, self.height))

    @property
    def background_speed(self) -> float:
        """Mean speed of the background over the frame, frame diagonals per second."""
        ys, xs = np.mgrid[-0.5:0.5:32j, -0.5:0.5:32j]
        mean_radius = np.hypot(xs * self.width, ys * self.height).mean() / self.diagonal
        return float(np.hypot(*self.camera) + abs(self.zoom_rate) * mean_radius)

    @property
    def foreground_speed(self) -> float:
        """Speed of the subject relative to the background, frame diagonals per second; 0 without a subject."""
        if self.subject is None:
            return 0.0
        return float(np.hypot(self.subject[0] - self.camera[0], self.subject[1] - self.camera[1]))

    def frame(self, t: float) -> Frame:
        """The frame at `t` seconds from the start of the scene; a scene lasts `SCENE_S` seconds."""
        if not 0 <= t <= SCENE_S:
            raise ValueError(f"a scene lasts {SCENE_S:g} s, but the frame at {t:g} s was asked for")
        image = self._zoomed(t) if self.zoom_rate else self._panned(t)
        if self.subject is not None:
            place = np.array([self.width, self.height * 1.04]) / 2
            place = place + np.array(self.subject) * self.diagonal * (t - SCENE_S / 2)
            paste(image, self._cutout, place[0], place[1])
        return image

    def _panned(self, t: float) -> Frame:
        x, y = (np.array(self._plate.shape[1::-1]) - (self.width, self.height)) / 2
        x -= self.camera[0] * self.diagonal * (t - SCENE_S / 2)
        y -= self.camera[1] * self.diagonal * (t - SCENE_S / 2)
        left, top = int(x), int(y)
        window = self._plate[top : top + self.height, left : left + self.width]
        return cv2.sepFilter2D(window, -1, cubic_taps(x - left), cubic_taps(y - top), anchor=(1, 1))

    def _zoomed(self, t: float) -> Frame:
        # From wide to 1:1 (or back), so that the plate is never enlarged; rendered at twice the size and averaged
        # down, so that the wide end does not alias.
        scale = np.exp(self.zoom_rate * (t - SCENE_S) if self.zoom_rate > 0 else self.zoom_rate * t)
        step = 1 / (2 * scale)  # plate pixels per rendered pixel
        size = np.array([2 * self.width, 2 * self.height])
        first = (np.array(self._plate.shape[1::-1]) - 1 - step * (size - 1)) / 2  # of the rendered pixels, on the plate
        to_plate = np.array([[step, 0, first[0]], [0, step, first[1]]])
        large = cv2.warpAffine(self._plate, to_plate, size.tolist(), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        return cv2.resize(large, (self.width, self.height), interpolation=cv2.INTER_AREA)

    def frames(self, duration_s: float, fps: float = 24, start_s: float = 0.0) -> Iterator[Frame]:
        """The frames of `duration_s` seconds, from `start_s` on."""
        for i in range(round(duration_s * fps)):
            yield self.frame(start_s + i / fps)

    @cached_property
    def _plate(self) -> Frame:
        margin = np.abs(np.array(self.camera)) * self.diagonal * SCENE_S
        widen = np.exp(abs(self.zoom_rate) * SCENE_S)
        width, height = (int(n) + 8 for n in np.array([self.width, self.height]) * widen + margin)
        return GRADES[self.grade](self.paint(np.random.default_rng(self.seed), width, height))

    @cached_property
    def _cutout(self) -> Sprite:
        sprite = SUBJECTS[self.subject_kind]()
        factor = 0.45 * min(self.height, self.width) / sprite.shape[0]
        return resized(sprite, factor)


def cubic_taps(fraction: float, a: float = -0.75) -> NDArray[np.float64]:
    """The four weights of cubic convolution (Keys, 1981) between the second and the third sample."""
    far = np.array([1 + fraction, 2 - fraction])
    near = np.array([fraction, 1 - fraction])
    first, last = a * (far**3 - 5 * far**2 + 8 * far - 4)
    second, third = (a + 2) * near**3 - (a + 3) * near**2 + 1
    return np.array([first, second, third, last])


def scenes(seed: int = 0, width: int = 640, height: int = 360) -> list[Scene]:
    """All scenes, each visibly different from the others; `seed` moves layouts, directions and speeds."""
    rng = np.random.default_rng(seed)
    made = []
    for paint, grade, motion, subject_kind in RECIPES:
        angle = rng.uniform(-0.25, 0.25) + np.pi * rng.integers(2)
        direction = np.array([np.cos(angle), np.sin(angle)])
        pan = tuple(float(v) for v in direction * rng.uniform(0.05, 0.1))
        drift = tuple(float(v) for v in -direction * rng.uniform(0.05, 0.08))
        zoom = float(rng.choice([-1, 1]) * rng.uniform(0.115, 0.135))
        made.append(
            Scene(
                name=f"{paint.__name__}-{grade}",
                motion=motion,
                width=width,
                height=height,
                paint=paint,
                grade=grade,
                seed=int(rng.integers(2**31)),
                camera=pan if "pan" in motion else (0.0, 0.0),  # type: ignore[arg-type]
                zoom_rate=zoom if motion == "zoom" else 0.0,
                subject=drift if "subject" in motion else None,  # type: ignore[arg-type]
                subject_kind=subject_kind,
            )
        )
    return made


def encode(
    path: Path,
    frames: Iterable[Frame],
    fps: float = FPS,
    crf: int = 20,
    times: Sequence[float] | None = None,
    rotation: Literal[0, 90] = 0,
) -> int:
    """Write frames as H.264 in MP4, the index in front; the same frames give the same bytes.

    Args:
        crf: the constant rate factor of x264; larger is worse.
        times: presentation time of each frame in seconds, for a variable frame rate or a late start.
        rotation: degrees clockwise by which a player must turn the frames, written into the file's metadata.

    Returns:
        The number of frames.
    """
    tick = Fraction(1, 90000)
    count = 0
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "superfast", "crf": str(crf), "threads": "1"}
        stream.codec_context.time_base = tick
        for count, image in enumerate(frames, start=1):
            if count == 1:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.time_base = tick
            frame.pts = round((times[count - 1] if times else (count - 1) / fps) / tick)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if rotation:
        _write_rotation(path)
    return count


def _write_rotation(path: Path) -> None:
    """Set the matrix of the track header (`tkhd`, ISO/IEC 14496-12) to a clockwise quarter turn."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # after the version, flags, times, track, duration, layer, group and volume
    height = int.from_bytes(data[matrix + 40 : matrix + 44], "big")  # 16.16 fixed point, as are the terms but w
    one = 1 << 16
    terms = (0, one, 0, -one, 0, 0, height, 0, 1 << 30)
    data[matrix : matrix + 36] = b"".join(term.to_bytes(4, "big", signed=True) for term in terms)
    path.write_bytes(data)


@lru_cache(maxsize=64)
def _subtitle(text: str, size: int) -> Sprite:
    """White text with a dark outline, as RGB and alpha, tight around the outline."""
    font = ImageFont.load_default(size=size)
    outline = max(2, size // 10)
    left, top, right, bottom = (round(v) for v in font.getbbox(text, stroke_width=outline))
    picture = Image.new("RGBA", (right - left, bottom - top), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    pen.text((-left, -top), text, "white", font, stroke_width=outline, stroke_fill=(15, 15, 15, 255))
    return np.asarray(picture)


def draw_subtitle(frame: Frame, text: str, size: int | None = None, baseline: float = 0.94) -> Box:
    """Burn one line of text into the frame, in place, centred in the lower fifth.

    Args:
        size: of the font in pixels; 1/16 of the frame's height unless given.
        baseline: where the text's box ends, a fraction of the frame's height.

    Returns:
        The box of the text with its outline.
    """
    height, width = frame.shape[:2]
    picture = _subtitle(text, size or round(height / 16))
    x, y = (width - picture.shape[1]) // 2, round(height * baseline) - picture.shape[0]
    paste(frame, picture, x + picture.shape[1] / 2, y + picture.shape[0] / 2)
    return x, y, picture.shape[1], picture.shape[0]


def draw_logo(frame: Frame, opacity: float = 0.8, margin: float = 0.05) -> Box:
    """Draw a mark that is no text, half a sun in a ring, in the upper right corner, in place; return its box."""
    height, width = frame.shape[:2]
    side = round(min(height, width) * 0.14)
    mark: Sprite = np.zeros((200, 200, 4), np.uint8)
    cv2.circle(mark, (100, 100), 98, (20, 60, 140, 255), -1, cv2.LINE_AA)
    cv2.circle(mark, (100, 100), 84, (255, 255, 255, 255), 12, cv2.LINE_AA)
    cv2.ellipse(mark, (100, 125), (52, 52), 0, 180, 360, (255, 196, 40, 255), -1, cv2.LINE_AA)
    mark[..., 3] = (mark[..., 3] * opacity).astype(np.uint8)
    inset = round(min(height, width) * margin)
    x, y = width - inset - side, inset
    paste(frame, cv2.resize(mark, (side, side), interpolation=cv2.INTER_AREA), x + side / 2, y + side / 2)
    return x, y, side, side


def blend(kind: TransitionKind, first: Frame, second: Frame, progress: float) -> Frame:
    """One frame inside a transition; `progress` runs from 0 (the first shot) to 1 (the second)."""
    if kind == "dissolve":
        return cv2.addWeighted(first, 1 - progress, second, progress, 0)
    if kind == "fade":  # through black
        return cv2.convertScaleAbs(first if progress < 0.5 else second, alpha=abs(1 - 2 * progress))
    if kind == "wipe":  # from left to right
        edge = round(progress * first.shape[1])
        return np.hstack([second[:, :edge], first[:, edge:]])
    raise ValueError(f"no frame lies inside a {kind}")


def edit(
    shots: Sequence[Scene], shot_s: float, kind: TransitionKind = "cut", transition_s: float = 0.0, fps: float = FPS
) -> tuple[Iterator[Frame], list[Span], list[tuple[TransitionKind, float, float]]]:
    """Join scenes.

    Args:
        shot_s: how long each scene is seen alone; a transition adds to it, and both scenes go on during it.

    Returns:
        The frames, the spans of the shots and the transitions. All times are whole frames.
    """
    alone, shared = round(shot_s * fps), 0 if kind == "cut" else round(transition_s * fps)
    starts = [k * (alone + shared) for k in range(len(shots))]
    spans = [(start / fps, (start + alone) / fps) for start in starts]
    transitions = [(kind, (start - shared) / fps, start / fps) for start in starts[1:]]

    def frames() -> Iterator[Frame]:
        for k, (scene, start) in enumerate(zip(shots, starts, strict=True)):
            began = start - (shared if k else 0)  # a scene begins with the transition that brings it
            for i in range(start, start + alone):
                yield scene.frame((i - began) / fps)
            if k + 1 < len(shots):
                end = start + alone
                for i in range(shared):
                    first = scene.frame((end + i - began) / fps)
                    yield blend(kind, first, shots[k + 1].frame(i / fps), (i + 1) / (shared + 1))

    return frames(), spans, transitions
