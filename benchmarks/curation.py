"""`make bench FILES=...`: what curation costs, as a multiple of only decoding the same files on the same cores.

    python -m benchmarks.curation FILE_OR_FOLDER ... [--repeats 3]

Each repeat decodes all files, then curates them into an empty folder: the whole flow, Prefect included, in a process
that has warmed up on one file. Decoding is timed two ways (files side by side with one thread each, and one by one
with a thread per core); the faster is the limit that curation is divided by. Prints the ratio of each repeat, where
the time goes, and the peak memory of the process.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

import av

from tasks.tables.sources import find_sources


def decode(file: str, threads: int) -> int:
    """Decode every frame of a file and drop it; returns how many there were, 0 for what is no video."""
    try:
        with av.open(file) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            return sum(1 for _ in container.decode(stream))
    except (av.FFmpegError, IndexError):
        return 0


def decode_all(files: Sequence[str], cores: int) -> tuple[float, int]:
    """Seconds of wall time of the faster way to decode all files on ``cores`` cores, and the number of frames."""
    largest_first = sorted(files, key=os.path.getsize, reverse=True)
    start = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        frames = sum(pool.map(lambda file: decode(file, 1), largest_first))
    side_by_side = time.perf_counter() - start
    start = time.perf_counter()
    for file in largest_first:
        decode(file, cores)
    return min(side_by_side, time.perf_counter() - start), frames


def curate(source: str, output: str) -> tuple[float, dict[str, float]]:
    """Seconds of wall time of the whole flow, and the seconds of each step's tasks."""
    from flows.curate_videos import curate_videos
    from tasks.tables.run_record import NothingKept

    start = time.perf_counter()
    with suppress(NothingKept):  # what the thresholds make of the files is not what is measured here
        curate_videos(source, output)
    wall = time.perf_counter() - start
    return wall, json.loads(Path(output, "run.json").read_text())["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="videos, or folders of videos")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    files = [uri for name in options.files for uri in find_sources(name)["source_uri"].to_pylist()]
    cores = len(os.sched_getaffinity(0))

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # The flow takes a folder: give it one of links, numbered, as two files may have one name.
        library, warm = scratch / "library", scratch / "warm"
        for folder, members in ((library, files), (warm, files)):
            folder.mkdir()
            for number, file in enumerate(members):
                (folder / f"{number:04d}_{Path(file).name}").symlink_to(file)
        if "PREFECT_API_URL" not in os.environ:
            from prefect.testing.utilities import prefect_test_harness

            stack.enter_context(prefect_test_harness(server_startup_timeout=120))
        curate(str(warm), str(scratch / "warm-out"))

        ratios, seconds = [], {}
        print(f"{len(files)} files, {cores} cores")
        for repeat in range(options.repeats):
            decoding, frames = decode_all(files, cores)
            output = scratch / f"out-{repeat}"
            curating, seconds = curate(str(library), str(output))
            ratios.append(curating / decoding)
            print(
                f"decode {decoding:6.2f} s ({decoding / max(frames, 1) * 1e3:.2f} ms a frame)   "
                f"curate {curating:6.2f} s   curate / decode = {ratios[-1]:.2f}",
                flush=True,
            )
            shutil.rmtree(output)
    print(f"median curate / decode = {statistics.median(ratios):.2f}\n\nwhere the time of the last run went")
    total = sum(seconds.values())
    for step, spent in seconds.items():
        print(f"{step:16} {spent:7.2f} s  {spent / total:6.1%}")
    print(f"\npeak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
