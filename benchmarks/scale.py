"""What a run takes on a long source, on many short ones, and on hostile ones: rows, time, memory.

    python -m benchmarks.scale [--minutes 60] [--sources 1000] [--keep FOLDER]

Three runs through the command line, as a user starts it, each on files that this program makes: one source of an hour;
a thousand sources of 4 s; twenty files that try to break the run (bombs, loops, lies in headers, things that are no
files). Prints rows, errors, seconds for each minute of video, and the peak of the memory of all processes of the run
beside that of a run on one short source, which is what the packages themselves take.
"""

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow.dataset as ds

FPS = 24
GIF_OF_65535_SQUARED = b"GIF89a\xff\xff\xff\xff\xf0\0\0" + b"\0" * 6 + b",\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;"
SIZE = 192, 108


def painted(seed: int, seconds: float) -> list[np.ndarray]:
    """A camera moving over a painted plane, another for each seed: RGB uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    coarse = rng.integers(0, 255, (1, 3, 12, 16)).astype(np.float32)
    plane = np.kron(coarse[0].transpose(1, 2, 0), np.ones((24, 24, 1), np.float32))
    plane += rng.normal(0, 12, plane.shape)
    plane = plane.clip(0, 255).astype(np.uint8)
    reach_y, reach_x = plane.shape[0] - height, plane.shape[1] - width
    count = round(seconds * FPS)
    at = np.linspace(0, 1, count)
    if seed % 2:
        at = at[::-1]
    ys, xs = (at * reach_y).astype(int), (at * reach_x).astype(int)
    return [plane[y : y + height, x : x + width] for y, x in zip(ys, xs, strict=True)]


def encode(path: Path, scenes: list[list[np.ndarray]]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for scene in scenes:
            for picture in scene:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode())


def repeated(path: Path, part: Path, times: int) -> None:
    """``part`` again and again as one video, its packets copied."""
    with av.open(str(path), "w") as target:
        stream = out = None
        shift = 0
        for _ in range(times):
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                out = out or target.add_stream_from_template(stream)
                length = 0
                for packet in source.demux(stream):
                    if packet.dts is None:
                        continue
                    length = max(length, packet.dts + packet.duration)
                    packet.dts, packet.pts = packet.dts + shift, packet.pts + shift
                    packet.stream = out
                    target.mux(packet)
                shift += length


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG whose header promises ``width`` x ``height`` and that holds ``rows`` black rows of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (1 + width // 8)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def hostile(folder: Path) -> None:
    """Twenty things that a folder of videos may hold and that try to break a run, and an ordinary video."""
    folder.mkdir(parents=True)
    good = folder / "ordinary.mp4"
    encode(good, [painted(1, 4)])
    whole = good.read_bytes()
    rng = np.random.default_rng(0)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "above").symlink_to(folder)
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(rng.bytes(300_000))
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "tail.mp4").write_bytes(whole[len(whole) // 2 :])
    spoilt = bytearray(whole)
    for place in rng.integers(2000, len(whole) - 3000, 400).tolist():
        spoilt[place] ^= 0xFF
    (folder / "spoilt.mp4").write_bytes(bytes(spoilt))
    (folder / "lie.mp4").write_bytes(whole.replace(struct.pack(">HH", *SIZE), struct.pack(">HH", 65535, 65535)))
    (folder / "code.ts").write_text("export const answer: number = 42;\n" * 2000)
    (folder / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:4,\nfile://{good}\n")
    (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {good}\n")
    (folder / "page.webm").write_text("<html><body>404 Not Found</body></html>")
    (folder / "bomb.png").write_bytes(png(60_000, 60_000, 60_000))
    (folder / "promise.png").write_bytes(png(30_000, 30_000, 3))
    (folder / "bomb.gif").write_bytes(
        b"GIF89a\xff\xff\xff\xff\xf0\0\0" + b"\0" * 6 + b",\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;"
    )
    (folder / "drawing.jpg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="1e9" height="1e9"/>')
    (folder / ("n" * 200 + " ::%d#?*[1].mp4")).write_bytes(whole)


@dataclass
class Taken:
    rows: int
    errors: int
    kept: int
    seconds: float
    peak_gib: float
    status: int


def curate(source: Path, output: Path) -> Taken:
    """Run the command line on ``source``; watch its processes."""
    command = [sys.executable, "-m", "flows.cli", str(source), str(output)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    status = process.wait()
    watcher.join()
    seconds = time.perf_counter() - start
    rows = ds.dataset(output / "clips").to_table(columns=["error", "keep"]).to_pylist()
    errors = sum(row["error"] is not None for row in rows)
    return Taken(len(rows), errors, sum(row["keep"] for row in rows), seconds, peak[0], status)


def _watch(process: "subprocess.Popen[bytes]", peak: list[float]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], _memory(process.pid) / 2**30)
        time.sleep(0.1)


def _memory(root: int) -> int:
    """Bytes of memory (proportional set size, as pages are shared) of a process and all that it started."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    family, grown = {root}, True
    while grown:
        new = {pid for pid, parent in parents.items() if parent in family} - family
        family |= new
        grown = bool(new)
    total = 0
    for pid in family:
        try:
            for line in (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60, help="length of the long source")
    parser.add_argument("--sources", type=int, default=1000, help="how many short sources")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    options = parser.parse_args()
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        if "PREFECT_API_URL" not in os.environ:
            from prefect.settings import PREFECT_API_URL
            from prefect.testing.utilities import prefect_test_harness

            stack.enter_context(prefect_test_harness(server_startup_timeout=120))
            os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value()
        root = options.keep or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        single, long, short = (root / name for name in ("single", "long", "short"))
        for folder in (single, long, short):
            folder.mkdir()
        encode(single / "single.mp4", [painted(0, 4)])
        # Six minutes that differ, again and again: what repeats is found as duplicate clips.
        part_minutes = min(6, options.minutes)
        encode(root / "part.mp4", [painted(seed, 5) for seed in range(part_minutes * 12)])
        repeated(long / "long.mp4", root / "part.mp4", max(1, options.minutes // part_minutes))
        for number in range(options.sources):
            encode(short / f"{number:05d}.mp4", [painted(1000 + number, 4)])
        hostile(root / "hostile")
        print(f"{'run':28} {'rows':>6} {'errors':>6} {'kept':>6} {'s':>8} {'s per min':>9} {'GiB':>6} status")
        runs = [
            ("one source of 4 s", single, 4 / 60),
            (f"one source of {options.minutes} min", long, options.minutes),
            (f"{options.sources} sources of 4 s", short, options.sources * 4 / 60),
            ("hostile ones", root / "hostile", 0.0),
        ]
        for name, source, minutes in runs:
            taken = curate(source, root / f"{source.name}-out")
            rate = f"{taken.seconds / minutes:9.2f}" if minutes else " " * 9
            print(
                f"{name:28} {taken.rows:6} {taken.errors:6} {taken.kept:6} {taken.seconds:8.1f} {rate} "
                f"{taken.peak_gib:6.2f} {taken.status}",
                flush=True,
            )


if __name__ == "__main__":
    main()
