"""How well copies of a source are found, and how safe the thresholds are.

    python -m benchmarks.duplicates [FOLDER] [--part media|made|all] [--seed 0] [--keep DIR]

Of every original, copies are encoded: low quality, half size, cropped by 10 % (middle and corner), other light and
colour, trimmed by 1 s at either end, and several of these at once. The steps scan, embed and dedup sources of the
default config then run over all files together, and every pair of files counts: recall is the share of copies put with
their original, precision the share of the pairs put together that are of one original.

Originals are, first, the videos of FOLDER (the thresholds were chosen on them): a longer one is cut into pieces of
5 s, and two pieces of one static take count as *different*, since what happens in them is. Second, made ones: painted
scenes, each between black bars and dark too; two takes in one place; two stretches of one pan; slides that share a
template. Their first run led to the comparison by parts, so they are no unseen data either.
"""

import argparse
import itertools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.sample_scenes import scenes
from tasks.curation.dedup_sources import DedupSourcesConfig, dedup_sources
from tasks.curation.embed import SIDE, embed
from tasks.curation.same_film import similarity
from tasks.curation.scan import scan
from tasks.tables import storage
from tasks.tables.rows import joined
from tasks.tables.shards import write_shards
from tasks.tables.sources import VIDEO, extension, find_sources
from tasks.tables.step import Row, side_by_side

DEFAULT_FOLDER = Path(__file__).parents[2] / "shared" / "media"
LONGEST_SIDE = 480
PIECE_S = 5.0
Frames = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Video:
    """RGB frames [H, W, 3] at ``fps``, and the rate factor of x264 they are stored with."""

    frames: Frames
    fps: float
    crf: int = 20

    def mapped(self, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], crf: int = 23) -> "Video":
        return Video([change(frame) for frame in self.frames], self.fps, crf)

    def trimmed(self, start_s: float, end_s: float) -> "Video":
        return Video(self.frames[round(start_s * self.fps) : len(self.frames) - round(end_s * self.fps)], self.fps, 23)


def scaled(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)


def cropped(image: NDArray[np.uint8], kept: float, x: float = 0.5, y: float = 0.5) -> NDArray[np.uint8]:
    """``kept`` of each side, from where ``x`` and ``y`` (0 to 1) say."""
    height, width = (round(side * kept) for side in image.shape[:2])
    top, left = round((image.shape[0] - height) * y), round((image.shape[1] - width) * x)
    return image[top : top + height, left : left + width]


def toned(gain: tuple[float, float, float], offset: float, gamma: float = 1.0) -> Callable[..., NDArray[np.uint8]]:
    """R, G and B multiplied by ``gain``, then ``offset`` added."""
    levels = 255 * (np.arange(256) / 255)[:, None] ** gamma * np.array(gain) + offset
    table = np.clip(levels, 0, 255).astype(np.uint8)[None]
    return lambda image: np.asarray(cv2.LUT(image, table), np.uint8)


BRIGHTER, DARKER = toned((1.1, 1.0, 0.9), 25), toned((0.7, 0.75, 0.85), -10, 1.15)
COPIES: dict[str, Callable[[Video], Video]] = {
    "low quality": lambda v: Video(v.frames, v.fps, 38),
    "half size": lambda v: v.mapped(lambda image: scaled(image, 0.5)),
    "cropped, middle": lambda v: v.mapped(lambda image: cropped(image, 0.9)),
    "cropped, corner": lambda v: v.mapped(lambda image: cropped(image, 0.9, 1, 0)),
    "brighter, warmer": lambda v: v.mapped(BRIGHTER),
    "darker, colder": lambda v: v.mapped(DARKER),
    "trimmed start": lambda v: v.trimmed(1, 0),
    "trimmed end": lambda v: v.trimmed(0, 1),
    "size+crop+quality": lambda v: v.mapped(lambda image: scaled(cropped(image, 0.9, 0.3, 0.7), 0.6), 34),
    "all at once": lambda v: v.trimmed(1, 0).mapped(lambda image: scaled(cropped(BRIGHTER(image), 0.9), 0.5), 32),
}


def encode(path: Path, video: Video) -> None:
    height, width = (side // 2 * 2 for side in video.frames[0].shape[:2])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(video.fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(video.crf), "preset": "veryfast", "threads": "1"}
        for image in video.frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def media(folder: Path) -> Iterator[tuple[str, Video]]:
    """The videos below a folder, in pieces of PIECE_S where they are longer than two."""
    for path in sorted(path for path in folder.iterdir() if extension(path.name) in VIDEO):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 25)
            frames = []
            for frame in container.decode(stream):
                image = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4)
                factor = LONGEST_SIDE / max(image.shape[:2])
                frames.append(scaled(np.ascontiguousarray(image), factor) if factor < 1 else image)
        length = round(PIECE_S * fps) if len(frames) > 2.2 * PIECE_S * fps else len(frames)
        for number in range(len(frames) // length):
            piece = frames[number * length : (number + 1) * length]
            yield f"{path.stem}-{number}", Video(piece, fps)


def made(seed: int) -> Iterator[tuple[str, Video]]:
    """Painted originals that are hard to tell apart."""
    fps = 12.0
    dim = toned((0.28, 0.28, 0.3), 14)
    for scene in scenes(seed, 320, 180):
        frames = [np.asarray(frame, np.uint8) for frame in scene.frames(7.0, fps)]
        yield f"{scene.name}-{scene.motion}-first", Video(frames[: int(3.4 * fps)], fps)
        if scene.motion != "zoom":  # the second half of a zoom is the first one cropped: a copy
            yield f"{scene.name}-{scene.motion}-second", Video(frames[-int(3.4 * fps) :], fps)
    for scene in scenes(seed + 1, 320, 180)[:8]:
        frames = [np.asarray(frame, np.uint8) for frame in scene.frames(4.0, fps)]
        yield f"{scene.name}-{scene.motion}-dark", Video([dim(frame) for frame in frames], fps)
    for scene in scenes(seed + 2, 320, 180)[:8]:
        frames = [cv2.copyMakeBorder(f[28:-28], 28, 28, 0, 0, cv2.BORDER_CONSTANT) for f in scene.frames(4.0, fps)]
        yield f"{scene.name}-{scene.motion}-letterboxed", Video([np.asarray(f, np.uint8) for f in frames], fps)
    yield from slides(seed, fps)


def slides(seed: int, fps: float, count: int = 6) -> Iterator[tuple[str, Video]]:
    """Stills of one template that differ in their text and a chart."""
    rng = np.random.default_rng(seed)
    words = ["revenue", "growth", "market", "quarter", "product", "launch", "team", "customer", "region", "forecast"]
    for number in range(count):
        slide = np.full((180, 320, 3), (236, 238, 242), np.uint8)
        cv2.rectangle(slide, (0, 0), (320, 30), (30, 60, 120), -1)
        for line, size in ((21, 0.6), *((y, 0.45) for y in (55, 75, 95, 115))):
            text = " ".join(rng.choice(words, rng.integers(1, 3)))
            colour = (255, 255, 255) if line == 21 else (40, 40, 40)
            cv2.putText(slide, text, (12, line), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
        for bar, height in enumerate(rng.integers(10, 90, 5)):
            cv2.rectangle(slide, (200 + 22 * bar, 160 - int(height)), (214 + 22 * bar, 160), (200, 90, 40), -1)
        yield f"slide-{number}", Video([slide] * round(4 * fps), fps)


def write_files(folder: Path, originals: Iterator[tuple[str, Video]]) -> None:
    """``<original>@<kind>.mp4`` for the original itself and each of its copies."""
    for name, video in originals:
        if len(video.frames) / video.fps < 3.0:
            continue  # without one second it would be too short for any clip
        jobs = {"original": video} | {kind: copy(video) for kind, copy in COPIES.items()}
        list(side_by_side(lambda job, n=name: encode(folder / f"{n}@{job[0]}.mp4", job[1]), list(jobs.items())))


def curate(files: Path, out: str) -> tuple[list[Row], list[Row]]:
    """Rows of all files after ``embed`` and after ``dedup sources``."""
    scanned = [scan.fn(table) for table in write_shards(find_sources(str(files)), out, 64)]
    embedded = [embed.fn(table) for table in scanned]
    results = dedup_sources.fn(scanned, embedded)
    read = [storage.read_table(table).to_pylist() for table in embedded]
    known = [{row["source_uri"]: row for row in joined([table])} for table in scanned]
    both = [known[i][row["source_uri"]] | row for i, rows in enumerate(read) for row in rows]
    return both, [row for pair in zip(scanned, results, strict=True) for row in joined(pair)]


def original_of(row: Row) -> tuple[str, str]:
    name, kind = Path(row["source_uri"]).stem.split("@")
    return name, kind


def report(embedded: list[Row], rows: list[Row]) -> None:
    stays = {row["source_uri"]: row["duplicate_of"] or row["source_id"] for row in rows}
    first = {original_of(row): stays[row["source_uri"]] for row in rows}
    found: dict[str, list[bool]] = defaultdict(list)
    for (name, kind), group in first.items():
        if kind != "original":
            found[kind].append(group == first[name, "original"])
    groups = defaultdict(list)
    for row in rows:
        groups[stays[row["source_uri"]]].append(original_of(row)[0])
    pairs = [a == b for names in groups.values() for a, b in itertools.combinations(names, 2)]
    print(f"{len(rows)} files of {len({name for name, _ in first})} originals")
    for kind, hits in found.items():
        print(f"  {kind:20} recall {np.mean(hits):.3f}  ({sum(hits)} of {len(hits)})")
    print(f"  {'all':20} recall {np.mean(list(itertools.chain(*found.values()))):.3f}   precision {np.mean(pairs):.4f}")
    for names in groups.values():
        if len(set(names)) > 1:
            print("  put together though different:", sorted(set(names)))
    for (name, kind), group in first.items():
        if group != first[name, "original"]:
            print("  missed:", name, kind)
    margins(embedded)


def margins(embedded: list[Row]) -> None:
    """Histogram of the similarity of true pairs, and of each original with the others that look like it."""
    rows = {original_of(row): row for row in embedded if not row["error"]}
    film = {key: np.frombuffer(row["signature"], np.uint8).reshape(-1, SIDE, SIDE) for key, row in rows.items()}
    config = DedupSourcesConfig()
    originals = [key for key in rows if key[1] == "original"]
    true = [
        similarity(film[name, "original"], film[name, kind], config.trim_s) for name, kind in rows if kind != "original"
    ]
    false = []
    for a, b in itertools.combinations(originals, 2):
        if np.dot(rows[a]["embedding"], rows[b]["embedding"]) >= config.candidate_cosine:
            false.append((similarity(film[a], film[b], config.trim_s), a[0], b[0]))
    edges = np.linspace(0, 1, 21)
    counts = [np.histogram(np.clip(values, 0, 1), edges)[0] for values in (true, [f[0] for f in false])]
    print(
        f"\nsimilarity: duplicates from {config.similarity_sparse} (sparse cluster), {config.similarity_dense} (dense)"
    )
    print("   from  copies  different originals (those with close embeddings)")
    for edge, copies, others in zip(edges, *counts, strict=False):
        print(f"   {edge:.2f}  {copies:6d}  {others:6d}")
    for value, a, b in sorted(false, reverse=True)[:5]:
        print(f"  closest different: {value:.3f}  {a}  {b}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--part", choices=("media", "made", "all"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="write the files here, and use those that are here already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.keep or Path(temporary)
        files = work / "files"
        if not files.exists():
            files.mkdir(parents=True)
            if args.part != "made":
                write_files(files, media(args.folder))
            if args.part != "media":
                write_files(files, made(args.seed))
        report(*curate(files, str(work / "out")))


if __name__ == "__main__":
    main()
