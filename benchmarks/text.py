"""How much burned-in text and how many marks are found and cropped away, on real footage with planted ones.

    python -m benchmarks.text [--media ../shared/media] [--variants 3] [--ocr] [--seed 0]

Subtitles of many sizes, places and styles, changing every 1 to 3 s, and semi-opaque geometric marks in the corners
are drawn onto footage that has neither; the files are encoded, scanned and scored like any others. ``--ocr``
reads the crops of the results with the whole RapidOCR at full resolution, every fifth frame, which takes minutes;
what it reads where nothing was planted is listed, and not counted.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.sample_library import scenes
from tasks.curation.cut import clip_row
from tasks.curation.decode import decode
from tasks.curation.overlays import OverlayConfig, score_source
from tasks.curation.scan import ScanConfig
from tasks.curation.text import TextConfig, score
from tasks.tables.clip import Clip
from tasks.tables.crop import Box, covered, crop_of, cut_out
from tasks.tables.frame_store import open_frames
from tasks.tables.step import Row

Frame = NDArray[np.uint8]
Draw = Callable[[Frame, float], Frame]

# Real files without text, and how many seconds of each are used.
CLEAN = ("dj_video4.mp4", "dj_video5.mp4", "ft_hiker.mp4", "fv_motorcycle.mp4", "va_1_A.mp4", "cc_10s.mp4")
MOVING = ("ft_hiker.mp4", "fv_motorcycle.mp4", "dj_video5.mp4", "psd_testvideo.mp4", "dj_video2.mp4")
SECONDS = 6.0
FONTS = ("", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansCondensed-Bold.ttf")
WORDS = {
    "latin": "we should leave before the rain begins nobody has lived here since that war",
    "greek": "πρέπει να φύγουμε πριν αρχίσει η βροχή κανείς δεν έζησε εδώ",  # noqa: RUF001
    "cyrillic": "нам пора уходить пока не начался дождь здесь никто давно не живёт",
}


@dataclass(frozen=True)
class Event:
    """A subtitle on the screen, with the box around its ink, pixels."""

    start_s: float
    end_s: float
    box: Box
    ink: Image.Image


def subtitles(rng: np.random.Generator, width: int, height: int) -> tuple[str, list[Event]]:
    """A random style, in words, and SECONDS of subtitles in it."""
    size = max(12, round(rng.uniform(0.04, 0.08) * min(height, width * 1.2)))
    names = FONTS if _has_font() else FONTS[:1]
    name = str(rng.choice(names))
    font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    script = str(rng.choice(list(WORDS))) if name else "latin"
    words = WORDS[script].split()
    style = str(rng.choice(["outline", "yellow", "box"]))
    place = str(rng.choice(["bottom", "bottom", "top"]))
    most_lines = int(rng.integers(1, 3))
    margin = rng.uniform(0.03, 0.08) * height
    events, now = [], float(rng.uniform(0, 0.4))
    while now < SECONDS:
        end = min(SECONDS, now + float(rng.uniform(1, 3)))
        lines = []
        for _ in range(int(rng.integers(1, most_lines + 1))):
            line = str(rng.choice(words))
            while len(line) < 40 and font.getlength(f"{line} {(word := str(rng.choice(words)))}") < 0.85 * width:
                line += f" {word}"
                if rng.random() < 0.15:
                    break
            lines.append(line)
        ink = Image.new("RGBA", (width, height))
        draw = ImageDraw.Draw(ink)
        text = "\n".join(lines)
        stroke = 0 if style == "box" else max(1, size // 14)
        bounds = [
            round(v) for v in draw.multiline_textbbox((0, 0), text, font=font, align="center", stroke_width=stroke)
        ]
        x = (width - bounds[2] + bounds[0]) / 2
        y = margin if place == "top" else height - margin - (bounds[3] - bounds[1])
        if style == "box":
            grow = size // 4
            corners = (x - grow, y - grow, x + bounds[2] - bounds[0] + grow, y + bounds[3] - bounds[1] + grow)
            draw.rectangle(corners, fill=(0, 0, 0, 160))
        fill = (255, 230, 0, 255) if style == "yellow" else (255, 255, 255, 255)
        at = (x - bounds[0], y - bounds[1])
        draw.multiline_text(at, text, fill, font, align="center", stroke_width=stroke, stroke_fill=(0, 0, 0, 255))
        box = Box(round(x), round(y), bounds[2] - bounds[0], bounds[3] - bounds[1])
        events.append(Event(now, end, box, ink))
        now = end + float(rng.choice([0, 0, rng.uniform(0.1, 0.8)]))
    return f"{style}, {place}, {most_lines} lines, {size} px, {script}", events


def _has_font() -> bool:
    try:
        ImageFont.truetype(FONTS[1], 12)
    except OSError:
        return False
    return True


def mark(rng: np.random.Generator, width: int, height: int) -> tuple[str, Box, Image.Image]:
    """A semi-opaque geometric mark in a corner: its kind in words, its box, and the picture to lay over a frame."""
    side = round(rng.uniform(0.07, 0.14) * min(width, height))
    x = round(0.04 * width) if rng.random() < 0.5 else width - round(0.04 * width) - side
    y = round(0.05 * height) if rng.random() < 0.5 else height - round(0.05 * height) - side
    alpha = int(rng.integers(110, 256))
    kind = str(rng.choice(["ring", "star", "bars"]))
    colour = (*[(255, 255, 255), (240, 60, 40), (40, 40, 60)][int(rng.integers(3))], alpha)
    ink = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(ink)
    if kind == "ring":
        draw.ellipse((x, y, x + side, y + side), outline=colour, width=max(2, side // 6))
    elif kind == "star":
        turns = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2, 0.2, 0.5) * side
        points = zip(x + side / 2 + reach * np.cos(turns), y + side / 2 + reach * np.sin(turns), strict=True)
        draw.polygon([(float(px), float(py)) for px, py in points], fill=colour)
    else:
        for i in range(3):
            draw.rectangle((x + i * side // 3, y + i * side // 4, x + i * side // 3 + side // 4, y + side), fill=colour)
    return f"{kind}, alpha {alpha / 255:.2f}", Box(x, y, side, side), ink


def laid_over(frame: Frame, ink: Image.Image) -> Frame:
    picture = Image.fromarray(frame)
    picture.paste(ink, mask=ink.getchannel("A"))
    return np.asarray(picture)


def footage(path: Path) -> Iterator[tuple[float, Frame]]:
    """Up to SECONDS of a file as (time, RGB), longest side at most 1280."""
    with av.open(str(path)) as container:
        first = None
        for frame in container.decode(video=0):
            first = frame.time if first is None else first
            if frame.time - first >= SECONDS:
                return
            scale = min(1, 1280 / max(frame.width, frame.height)) / 2
            size = {"width": round(frame.width * scale) * 2, "height": round(frame.height * scale) * 2}
            yield frame.time - first, frame.reformat(**size, format="rgb24").to_ndarray()


def painted(seed: int) -> Iterator[tuple[str, Callable[[], Iterator[tuple[float, Frame]]]]]:
    """Footage for a machine without real files: the scenes of the sample library."""
    for scene in scenes(seed)[:6]:
        yield (
            scene.name,
            lambda scene=scene: ((i / 24, scene.frame(i / 24)) for i in range(round(SECONDS * 24))),  # type: ignore[misc]
        )


def encode(path: Path, frames: Iterator[tuple[float, Frame]], draw: Draw) -> None:
    stream: Any = None
    with av.open(str(path), "w") as container:
        for time_s, image in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=30, options={"crf": "21", "preset": "veryfast"})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 90000)
            frame = av.VideoFrame.from_ndarray(draw(image, time_s), "rgb24")
            frame.pts, frame.time_base = round(time_s * 90000), Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def scored(path: Path, folder: Path) -> list[Row]:
    """The one clip that a file is, after text and overlays; with ``text_ms`` and ``decode_ms`` of a processor."""
    (folder / path.stem).mkdir(exist_ok=True)
    source = decode(str(path), str(folder / path.stem), ScanConfig().samples_per_s)
    source |= {"source_uri": str(path), "source_id": path.stem, "frames_uri": path.stem, "rejected_by": []}
    rows = [clip_row(source, source["start_s"], source["end_s"])]
    started = time.thread_time()
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        count = sum(1 for _ in container.decode(video=0))
    decode_ms = (time.thread_time() - started) * 1000 / max(1, count)
    with open_frames(str(folder / path.stem / "samples.parquet")) as store:
        for row in rows:
            started = time.thread_time()
            row |= score(Clip(row, store), TextConfig())
            row["text_ms"] = (time.thread_time() - started) * 1000
            row["decode_ms"] = decode_ms * row["duration_s"] * row["fps"]
        started = time.thread_time()
        images = [frame.image for frame in store.frames(-np.inf, np.inf, OverlayConfig().samples)]
        for row, found in zip(rows, score_source(rows, images, OverlayConfig()), strict=True):
            row |= found
        for row in rows:
            row["overlays_ms"] = (time.thread_time() - started) * 1000 / len(rows)
    return rows


def words_in_crop(path: Path, row: Row, reader: Any, events: list[Event]) -> tuple[list[str], list[str]]:
    """What RapidOCR reads inside the crop, at full resolution, in every fifth frame of a clip: where a subtitle was
    planted, and elsewhere (text of the scene itself, and scenery misread)."""
    planted, other = [], []
    crop = crop_of(row)
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i % 5 or not row["start_s"] <= frame.time < row["end_s"]:
                continue
            image = cut_out(frame.to_ndarray(format="rgb24"), crop, row["width"], row["height"])
            read = reader(np.ascontiguousarray(image[..., ::-1]))
            shown = [event.box for event in events if event.start_s <= frame.time < event.end_s]
            for word, corners in zip(read.txts or (), read.boxes if read.txts else (), strict=True):
                (x, y), (right, bottom) = corners.min(0).astype(int), corners.max(0).astype(int)
                place = Box(int(x + crop.x), int(y + crop.y), int(right - x), int(bottom - y))
                if len(word) > 1:
                    (planted if any(place.meet(box).area for box in shown) else other).append(word)
    return planted, other


def _boxes(row: Row, column: str) -> list[Box]:
    return [Box(**box) for box in row[column]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, default=Path("../shared/media"))
    parser.add_argument("--variants", type=int, default=3, help="subtitle styles and marks for each piece of footage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ocr", action="store_true", help="read the crops with the whole RapidOCR")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    reader: Any = None
    if args.ocr:
        from rapidocr import RapidOCR

        reader = RapidOCR(params={"Global.log_level": "error"})
    real = [(name, args.media / name) for name in CLEAN if (args.media / name).exists()]
    clean = [(name, lambda path=path: footage(path)) for name, path in real] or list(painted(args.seed))  # type: ignore[misc]
    moving = [(name, args.media / name) for name in MOVING if (args.media / name).exists()]
    panned = [(name, lambda path=path: footage(path)) for name, path in moving] + list(painted(args.seed))[:3]  # type: ignore[misc]
    totals = {"events": 0, "found": 0, "clips": 0, "free": 0, "marks": 0, "marks found": 0, "clean": 0, "flagged": 0}
    kept, ratios = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, frames in clean:
            encode(path := folder / f"clean-{Path(name).stem}.mp4", frames(), lambda image, time_s: image)
            for row in scored(path, folder):
                totals["clean"] += 1
                touched = row["text_area_kept"] or row["overlay_area_kept"] or row["overlay_area"] or row["text_area"]
                totals["flagged"] += bool(touched)
                ratios.append((row["text_ms"] / row["decode_ms"], row["overlays_ms"] / row["decode_ms"]))
                print(
                    f"clean      {name:20s} text {row['text_area']:.4f} overlays {row['overlay_area']:.4f}", flush=True
                )
            for variant in range(args.variants):
                height, width = next(iter(frames()))[1].shape[:2]
                style, events = subtitles(rng, width, height)

                def burn(image: Frame, time_s: float, events: list[Event] = events) -> Frame:
                    for event in events:
                        if event.start_s <= time_s < event.end_s:
                            image = laid_over(image, event.ink)
                    return image

                encode(path := folder / f"subtitles-{Path(name).stem}-{variant}.mp4", frames(), burn)
                for row in scored(path, folder):
                    begin, end = row["start_s"], row["end_s"]
                    shown = [e for e in events if min(e.end_s, end) - max(e.start_s, begin) > 0.04]
                    long = [e for e in shown if min(e.end_s, end) - max(e.start_s, begin) >= 1]
                    boxes, crop = _boxes(row, "text_boxes"), crop_of(row)
                    found = [covered(boxes, e.box) >= 0.5 for e in long]
                    free = not any(e.box.meet(crop).area for e in shown)
                    words, other = words_in_crop(path, row, reader, events) if reader else ([], [])
                    share = crop.area / (row["width"] * row["height"])
                    totals["events"] += len(long)
                    totals["found"] += sum(found)
                    totals["clips"] += 1
                    totals["free"] += free and not words
                    kept.append(share / (1 - row["border_area"]))
                    ratios.append((row["text_ms"] / row["decode_ms"], row["overlays_ms"] / row["decode_ms"]))
                    print(
                        f"subtitles  {name:20s} {sum(found)}/{len(long)} found, crop {'free' if free else 'NOT FREE'}, "
                        f"{share:.2f} kept, text in crop {row['text_area_kept']:.4f} {words or ''} "
                        f"{f'read elsewhere: {sorted(set(other))} ' if other else ''}"
                        f"({style}) text {row['text_ms']:.0f} ms, decoding {row['decode_ms']:.0f} ms",
                        flush=True,
                    )
        for name, frames in panned:
            for variant in range(args.variants):
                height, width = next(iter(frames()))[1].shape[:2]
                kind, box, ink = mark(rng, width, height)
                path = folder / f"mark-{Path(name).stem}-{variant}.mp4"
                encode(path, frames(), lambda image, time_s, ink=ink: laid_over(image, ink))  # type: ignore[misc]
                for row in scored(path, folder):
                    boxes = _boxes(row, "overlay_boxes") + _boxes(row, "text_boxes")
                    found_it = covered(boxes, box) >= 0.5
                    totals["marks"] += 1
                    totals["marks found"] += found_it
                    outside = not box.meet(crop_of(row)).area
                    print(
                        f"mark       {name:20s} {'found' if found_it else 'MISSED'} cropped {outside} ({kind})",
                        flush=True,
                    )
    summary = totals | {
        "area kept, mean": round(float(np.mean(kept)), 3),
        "area kept, least": round(float(np.min(kept)), 3),
        "text / decoding, median": round(float(np.median([ratio for ratio, _ in ratios])), 2),
        "overlays / decoding, median": round(float(np.median([ratio for _, ratio in ratios])), 2),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
