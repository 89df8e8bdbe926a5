"""A small library of raw videos whose every defect is known.

    python -m benchmarks.sample_library OUT [--seed 0] [--quick]

writes OUT/videos/ (what a curation is fed) and OUT/truth.json (what it should find there). The footage is made of the
two photographs inside scikit-learn, so nothing is downloaded; the same seed gives the same bytes.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
from PIL import Image

from benchmarks.sample_plates import Frame, billboards
from benchmarks.sample_scenes import (
    FPS,
    SCENE_S,
    Box,
    Scene,
    Span,
    TransitionKind,
    draw_logo,
    draw_subtitle,
    edit,
    encode,
    scenes,
)

__all__ = ["FileTruth", "Frame", "Scene", "Truth", "build", "draw_logo", "draw_subtitle", "edit", "encode", "scenes"]

Dress = Callable[[Frame, float], Frame]  # a frame and its time in seconds -> the frame as it is encoded

QUICK = ("pan", "copy_of_pan", "cuts", "dissolve", "subtitles", "logo", "truncated", "not_a_video")
SENTENCES = (
    "We should leave before the rain begins.",
    "I have never seen it this quiet.",
    "Did she tell you where the boat is?",
    "Nobody has lived here since the war.",
    "Then we walk around the lake.",
    "It is only two miles from the gate.",
)


@dataclass(frozen=True)
class FileTruth:
    """What one file of the library is, and what a curation should make of it.

    Attributes:
        kind: what the file is there for, such as `subtitles`.
        outcome: `keep` (every shot, whole), `crop` (what is wrong lies outside of a crop that keeps most of the
            frame; a clip that still shows it must be rejected), or `reject`.
        expected_reason: what is wrong: `error`, `duplicate`, `short`, `text`, `blur` or `motion` where it is rejected;
            `text`, `logo` or `letterbox` where it is cropped; None where it is kept.
        width, height: as displayed (after rotation), pixels; 0 where there is no picture.
        shots: stretches without any transition. Times are presentation times of the file.
        transitions: `(kind, start_s, end_s)`; a cut starts and ends at the first frame of the new shot.
        subtitles: `(start_s, end_s, x, y, width, height)` of each line of text.
        logo: box of the mark, which is in every frame.
        content_box: the picture inside the black bars.
        duplicate_of: the better copy, which is the one to keep.
        surviving_fraction: of a truncated file's frames, how many can still be decoded.
        background_speed: mean over the frame, frame diagonals per second; None for files of several shots.
        foreground_speed: of the subject relative to the background, in the same unit.
    """

    name: str
    kind: str
    outcome: Literal["keep", "crop", "reject"] = "keep"
    expected_reason: str | None = None
    width: int = 0
    height: int = 0
    duration_s: float = 0.0
    shots: list[Span] = field(default_factory=list)
    transitions: list[tuple[TransitionKind, float, float]] = field(default_factory=list)
    subtitles: list[tuple[float, float, int, int, int, int]] = field(default_factory=list)
    logo: Box | None = None
    content_box: Box | None = None
    blurred: bool = False
    frozen: bool = False
    duplicate_of: str | None = None
    surviving_fraction: float = 1.0
    background_speed: float | None = None
    foreground_speed: float | None = None

    @property
    def clean(self) -> bool:
        """Whether every shot must be kept, whole."""
        return self.outcome == "keep"

    @property
    def expect_error(self) -> bool:
        """Whether the file must end as a row with `error` set."""
        return self.expected_reason == "error"


@dataclass(frozen=True)
class Truth:
    """What a library is made of."""

    seed: int
    quick: bool
    files: list[FileTruth]

    def __getitem__(self, kind: str) -> FileTruth:
        """The file of a kind."""
        return next(file for file in self.files if file.kind == kind)

    def save(self, path: Path) -> None:
        files = [asdict(file) | {"clean": file.clean, "expect_error": file.expect_error} for file in self.files]
        path.write_text(json.dumps({"seed": self.seed, "quick": self.quick, "files": files}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Truth":
        """The truth that `save` wrote, equal to what was saved."""
        document = json.loads(path.read_text())
        files = []
        for row in document["files"]:
            for name in ("shots", "transitions", "subtitles"):
                row[name] = [tuple(item) for item in row[name]]
            for name in ("logo", "content_box"):
                row[name] = tuple(row[name]) if row[name] else None
            del row["clean"], row["expect_error"]
            files.append(FileTruth(**row))
        return cls(document["seed"], document["quick"], files)


def _whole(path: Path, scene: Scene, duration_s: float, start_s: float = 0.0) -> FileTruth:
    """The truth of a file that shows one scene and is kept whole."""
    return FileTruth(
        name=path.name,
        kind=path.stem,
        width=scene.width,
        height=scene.height,
        duration_s=duration_s,
        shots=[(start_s, start_s + duration_s)],
        background_speed=scene.background_speed,
        foreground_speed=scene.foreground_speed,
    )


def _plain(path: Path, scene: Scene, shot_s: float, dress: Dress | None = None, crf: int = 20) -> FileTruth:
    """One scene, each frame passed through `dress`."""
    frames = (dress(frame, i / FPS) if dress else frame for i, frame in enumerate(scene.frames(shot_s, FPS)))
    return _whole(path, scene, encode(path, frames, crf=crf) / FPS)


def _edited(
    path: Path, shots: Sequence[Scene], shot_s: float, transition: TransitionKind = "cut", transition_s: float = 0.0
) -> FileTruth:
    """Several scenes, joined by one kind of transition."""
    frames, spans, transitions = edit(shots, shot_s, transition, transition_s)
    truth = _whole(path, shots[0], encode(path, frames) / FPS)
    return replace(truth, shots=spans, transitions=transitions, background_speed=None, foreground_speed=None)


def _subtitled(path: Path, scene: Scene, shot_s: float, line_s: float = 1.5) -> FileTruth:
    lines: dict[int, Box] = {}

    def dress(frame: Frame, t: float) -> Frame:
        number = int(t / line_s)
        lines[number] = draw_subtitle(frame, SENTENCES[number % len(SENTENCES)])
        return frame

    truth = _plain(path, scene, shot_s, dress=dress)
    spans = [(n * line_s, min((n + 1) * line_s, shot_s), *box) for n, box in lines.items()]
    return replace(truth, outcome="crop", expected_reason="text", subtitles=spans)


def _with_logo(path: Path, scene: Scene, shot_s: float) -> FileTruth:
    boxes: set[Box] = set()

    def dress(frame: Frame, t: float) -> Frame:
        boxes.add(draw_logo(frame))
        return frame

    truth = _plain(path, scene, shot_s, dress=dress)
    return replace(truth, outcome="crop", expected_reason="logo", logo=boxes.pop())


def _letterboxed(path: Path, scene: Scene, shot_s: float) -> FileTruth:
    """A picture of 2.39:1 between black bars."""
    height = round(scene.width / 2.39 / 2) * 2
    bar = (scene.height - height) // 2

    def dress(frame: Frame, t: float) -> Frame:
        return cv2.copyMakeBorder(frame, bar, scene.height - height - bar, 0, 0, cv2.BORDER_CONSTANT)

    truth = _plain(path, replace(scene, height=height), shot_s, dress=dress)
    box = (0, bar, scene.width, height)
    return replace(truth, height=scene.height, outcome="crop", expected_reason="letterbox", content_box=box)


def _defocused(path: Path, scene: Scene, shot_s: float) -> FileTruth:
    """Every point a disc, a fortieth of the frame's height in radius."""
    radius = scene.height // 40
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)).astype(np.float32)
    truth = _plain(path, scene, shot_s, dress=lambda frame, t: cv2.filter2D(frame, -1, disc / disc.sum()))
    return replace(truth, outcome="reject", expected_reason="blur", blurred=True)


def _frozen(path: Path, scene: Scene, shot_s: float) -> FileTruth:
    still = scene.frame(0.0)
    truth = _plain(path, scene, shot_s, dress=lambda frame, t: still)
    truth = replace(truth, background_speed=0.0, foreground_speed=0.0, frozen=True)
    return replace(truth, outcome="reject", expected_reason="motion")


def _copied(path: Path, scene: Scene, shot_s: float, original: str) -> FileTruth:
    """The same shot again: 3 % cropped at each side, three quarters the size, and coarsely encoded."""
    width, height = (side * 3 // 8 * 2 for side in (scene.width, scene.height))
    x, y = round(scene.width * 0.03), round(scene.height * 0.03)

    def dress(frame: Frame, t: float) -> Frame:
        return cv2.resize(frame[y:-y, x:-x], (width, height), interpolation=cv2.INTER_AREA)

    truth = _plain(path, scene, shot_s, dress, crf=30)
    speed = scene.background_speed * scene.width / (scene.width - 2 * x)
    truth = replace(truth, width=width, height=height, background_speed=speed, duplicate_of=original)
    return replace(truth, outcome="reject", expected_reason="duplicate")


def _truncated(path: Path, scene: Scene, shot_s: float) -> FileTruth:
    """The index says that the file is whole, but its last 60 % are missing."""
    truth = _plain(path, scene, shot_s)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 5])
    decoded = 0
    with av.open(str(path)) as container:
        try:
            for _ in container.decode(video=0):
                decoded += 1
        except av.FFmpegError:
            pass
    surviving = decoded / (truth.duration_s * FPS)
    return replace(truth, outcome="reject", expected_reason="error", surviving_fraction=surviving)


def _without_index(path: Path, scene: Scene) -> FileTruth:
    """What a recorder leaves that lost power: media data, but no `moov` box, so nothing can open it."""
    truth = _plain(path, scene, 2.0)
    data = path.read_bytes()
    start = data.index(b"moov") - 4
    path.write_bytes(data[:start] + data[start + int.from_bytes(data[start : start + 4], "big") :])
    return replace(truth, shots=[], outcome="reject", expected_reason="error", surviving_fraction=0.0)


def _variable_rate(path: Path, scene: Scene, shot_s: float, seed: int) -> FileTruth:
    """Frames 1/30, 1/24 or 1/15 s apart, the first of them half a second late."""
    rng = np.random.default_rng(seed)
    late = 0.5
    times = [late]
    while times[-1] < late + shot_s:
        times.append(times[-1] + float(rng.choice([1 / 30, 1 / 24, 1 / 15])))
    encode(path, (scene.frame(t - late) for t in times), times=times)
    return _whole(path, scene, times[-1] - late, start_s=late)


def _rotated(path: Path, scene: Scene, shot_s: float) -> FileTruth:
    """Held upright: stored lying on its side, with the turn in the metadata."""
    encode(path, (np.rot90(frame) for frame in scene.frames(shot_s, FPS)), rotation=90)
    return _whole(path, scene, shot_s)


def _photograph(path: Path, scene: Scene) -> FileTruth:
    """A still image, which is a source as well."""
    Image.fromarray(scene.frame(SCENE_S / 2)).save(path, quality=92)
    return replace(_whole(path, scene, 0.0), shots=[], background_speed=None, foreground_speed=None)


def _posters(path: Path, scene: Scene, shot_s: float) -> FileTruth:
    return replace(_plain(path, scene, shot_s), outcome="reject", expected_reason="text")


def _short(path: Path, scene: Scene) -> FileTruth:
    """Too short for a clip."""
    return replace(_plain(path, scene, 1.5), outcome="reject", expected_reason="short")


def _not_a_video(path: Path) -> FileTruth:
    path.write_text("A shopping list, whatever its name says.\n- rice\n- tea\n- lanterns\n" * 40)
    return _broken(path)


def _empty(path: Path) -> FileTruth:
    path.write_bytes(b"")
    return _broken(path)


def _audio_only(path: Path, duration_s: float = 3.0) -> FileTruth:
    rate = 44100
    tone = np.sin(2 * np.pi * 440 * np.arange(int(duration_s * rate)) / rate)[None].astype(np.float32) / 4
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return _broken(path, duration_s=duration_s)


def _broken(path: Path, duration_s: float = 0.0) -> FileTruth:
    """The truth of a file in which there is no picture at all."""
    reject = FileTruth(path.name, path.stem, "reject", "error", duration_s=duration_s)
    return replace(reject, surviving_fraction=0.0)


def build(out: Path, seed: int = 0, quick: bool = False) -> Truth:
    """Write the library to out/videos and its truth to out/truth.json.

    Args:
        quick: only the files named in `QUICK`, small and short.
    """
    size, shot_s = ((480, 270), 3.5) if quick else ((640, 360), 5.0)
    cast = {scene.name: scene for scene in scenes(seed, *size)}

    def sized(name: str, width: int, height: int) -> Scene:
        return replace(cast[name], width=width, height=height)

    def pair(first: str, second: str) -> list[Scene]:
        return [cast[first], cast[second]]

    pan = cast["garden-day"] if quick else sized("garden-day", 1280, 720)
    cuts = pair("blossoms-day", "facade-day") + ([] if quick else [cast["leaves-day"]])
    dissolve = partial(_edited, shots=pair("meadow-dusk", "lake-autumn"), transition="dissolve", transition_s=1.0)
    fade = partial(_edited, shots=pair("skyline-dusk", "forest-autumn"), transition="fade", transition_s=1.5)
    wipe = partial(_edited, shots=pair("blossoms-violet", "facade-winter"), transition="wipe", transition_s=1.0)
    street = replace(cast["facade-day"], name="billboards-day", paint=billboards)
    makers: dict[str, Callable[[Path], FileTruth]] = {
        "pan": partial(_plain, scene=pan, shot_s=shot_s),
        "zoom": partial(_plain, scene=cast["meadow-day"], shot_s=5),
        "subject": partial(_plain, scene=cast["lake-day"], shot_s=5),
        "pan_subject": partial(_plain, scene=sized("skyline-day", 960, 540), shot_s=5),
        "portrait": partial(_plain, scene=sized("forest-day", 360, 640), shot_s=5),
        "rotated": partial(_rotated, scene=sized("facade-jungle", 360, 640), shot_s=5),
        "late_variable_rate": partial(_variable_rate, scene=cast["skyline-violet"], shot_s=5, seed=seed),
        "photograph": partial(_photograph, scene=sized("blossoms-winter", 1280, 720)),
        "cuts": partial(_edited, shots=cuts, shot_s=min(shot_s, 4)),
        "dissolve": partial(dissolve, shot_s=min(shot_s, 4)),
        "fade": partial(fade, shot_s=4),
        "wipe": partial(wipe, shot_s=4),
        "subtitles": partial(_subtitled, scene=cast["postcard-day"], shot_s=shot_s),
        "logo": partial(_with_logo, scene=cast["meadow-violet"], shot_s=shot_s),
        "letterbox": partial(_letterboxed, scene=sized("lake-winter", 960, 540), shot_s=5),
        "posters": partial(_posters, scene=street, shot_s=5),
        "defocus": partial(_defocused, scene=cast["garden-dusk"], shot_s=5),
        "frozen": partial(_frozen, scene=cast["postcard-dusk"], shot_s=5),
        "short": partial(_short, scene=cast["garden-bright"]),
        "copy_of_pan": partial(_copied, scene=pan, shot_s=shot_s, original="pan.mp4"),
        "truncated": partial(_truncated, scene=cast["forest-winter"], shot_s=shot_s),
        "no_index": partial(_without_index, scene=cast["leaves-autumn"]),
        "not_a_video": _not_a_video,
        "audio_only": _audio_only,
        "empty": _empty,
    }
    folder = Path(out) / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    names = {kind: f"{kind}.jpg" if kind == "photograph" else f"{kind}.mp4" for kind in makers}
    files = [makers[kind](folder / names[kind]) for kind in (QUICK if quick else makers)]
    truth = Truth(seed, quick, sorted(files, key=lambda file: file.name))
    truth.save(Path(out) / "truth.json")
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write: OUT/videos and OUT/truth.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="eight short files only")
    args = parser.parse_args()
    started = time.perf_counter()
    truth = build(args.out, args.seed, args.quick)
    for file in truth.files:
        print(f"{file.name:24} {file.width:4} x {file.height:<4} {file.duration_s:5.1f} s  {file.outcome}", end="")
        print(f" ({file.expected_reason})" if file.expected_reason else "")
    size = sum(path.stat().st_size for path in (args.out / "videos").iterdir()) / 1e6
    seconds = sum(file.duration_s for file in truth.files)
    print(f"{len(truth.files)} files, {seconds:.0f} s, {size:.1f} MB, built in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
