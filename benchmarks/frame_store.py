"""What the frames of a clip cost to read from an object store, for sources of several lengths.

    python -m benchmarks.frame_store [--minutes 1 10]

Writes a frame store for each length to an S3 server of its own on loopback (moto), and reads it as a step does: opened
once, then clips of 5 s one after the other with all their samples and pairs; and a few clips alone. Counts
the requests that reach the server and the bytes they bring, against the bytes of the pictures that were asked for:
1.00 is the limit. Neither may grow with the length of the source.
"""

import argparse
import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.tables import storage
from tasks.tables.frame_store import FrameStoreWriter, open_frames

RATE = 2.0  # samples per second
CLIP_S = 5.0
IN_ORDER = 24  # clips, from the middle of the source; moto copies the whole file at every read
ALONE = 5  # clips read each from a store just opened


@dataclass
class Count:
    """Requests of every kind, and the bytes of the answers that carry a file's content."""

    requests: int = 0
    bytes: int = 0


@contextmanager
def s3_server() -> Iterator[None]:
    """An S3 server on loopback, which ``s3://`` URIs of this process go to."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"})
    yield
    server.stop()


@contextmanager
def counting() -> Iterator[Count]:
    """Counts what s3fs asks of the server."""
    from s3fs import S3FileSystem

    count, call = Count(), S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **named: Any) -> Any:
        answer = await call(self, method, *arguments, **named)
        count.requests += 1
        count.bytes += answer["ContentLength"] if method == "get_object" else 0
        return answer

    S3FileSystem._call_s3 = counted
    try:
        yield count
    finally:
        S3FileSystem._call_s3 = call


def write_store(uri: str, minutes: float) -> int:
    """A store of noisy pictures, whose JPEGs are as large as those of footage four times their size; bytes of a row."""
    noise = np.random.default_rng(0).integers(0, 256, (45, 80, 3), np.uint8)
    picture = noise.repeat(4, axis=0).repeat(4, axis=1)
    with storage.writing(uri) as file:
        writer = FrameStoreWriter(file)
        for i in range(round(minutes * 60 * RATE)):
            writer.add(i / RATE, np.roll(picture, i, axis=1), i / RATE + 1 / 15, np.roll(picture, i + 1, axis=1))
        writer.close()
    return file_size(uri) // round(minutes * 60 * RATE)


def file_size(uri: str) -> int:
    with storage.open_read(uri) as file:
        return file.size


def measure(uri: str, minutes: float, row_bytes: int) -> str:
    """One line of the table: reads to open, reads a clip in order and alone, and their bytes over those wanted."""
    clips = round(minutes * 60 / CLIP_S)
    middle = range(max(0, (clips - IN_ORDER) // 2), min(clips, (clips + IN_ORDER) // 2))
    wanted = row_bytes * RATE * CLIP_S
    with counting() as opening, open_frames(uri):
        pass
    with counting() as ordered, open_frames(uri) as store:
        for number in middle:
            store.jpegs(number * CLIP_S, (number + 1) * CLIP_S)
            store.pairs(number * CLIP_S, (number + 1) * CLIP_S)
    alone = Count()
    for number in range(0, clips, math.ceil(clips / ALONE)):
        with open_frames(uri) as store, counting() as one:
            store.jpegs(number * CLIP_S, (number + 1) * CLIP_S)
            store.pairs(number * CLIP_S, (number + 1) * CLIP_S)
        alone.requests, alone.bytes = max(alone.requests, one.requests), max(alone.bytes, one.bytes)
    return (
        f"{minutes:7.0f} {clips:6} {opening.requests:9} {opening.bytes / 2**20:8.2f}"
        f" {(ordered.requests - opening.requests) / len(middle):12.2f}"
        f" {(ordered.bytes - opening.bytes) / len(middle) / wanted:8.2f}"
        f" {alone.requests:13} {alone.bytes / wanted:8.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10])
    options = parser.parse_args()
    with ExitStack() as stack:
        stack.enter_context(s3_server())
        from fsspec import filesystem

        filesystem("s3").mkdir("frames")
        print("        clips      opening          clips in order         a clip alone (most)")
        print("minutes        requests      MiB     requests  x bytes      requests  x bytes")
        for minutes in options.minutes:
            uri = f"s3://frames/{minutes:g}/samples.parquet"
            row_bytes = write_store(uri, minutes)
            print(measure(uri, minutes, row_bytes), flush=True)


if __name__ == "__main__":
    main()
