"""The encode server and the batch buffer on loopback: what the transport costs, and whether training waits for data.

    python -m benchmarks.encode_server [--part transport wait] [--repeats 9] [--steps 60]

transport: batches of a data rank at the report's stages 2 and 3, with numbers in place of encoded clips, are served by
one process and fetched by another, uncompressed. Their MB/s are divided by those of one thread that copies the same
bytes in memory, in turn, so that whatever else the machine does falls on both. Then each part of the way by itself.

wait: real clips, made for this, are encoded by one server process; a stand-in for training sleeps in each step, a bit
longer than the server takes for a batch. Printed is the share of the time in which it waited for its batch.
"""

import argparse
import contextlib
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.parquet as pq
import torch

from models.codec import LATENT_CHANNELS, latent_shape
from training.data.buckets import Shape
from training.data.manifest import SCHEMA, Clip, open_manifest
from training.data.plan import BatchPlan, Job, Sample
from training.encode import wire
from training.encode.batch_file import read_file, write_file
from training.encode.buffer import BufferedFeed, Share
from training.encode.client import EncodeClient, check
from training.encode.encoder import Encoded, load_encoder
from training.encode.servers import Servers
from training.recipe import Phase, Recipe
from training.run import EncodeConfig

TEXT, POOLED = (333, 4096), (2048,)  # of Stable Diffusion 3.5's encoders
STAMP = wire.Stamp("weights", "job", 0, 0, 1)
ROOT = Path(__file__).parents[1]
FPS, SOURCE = 24, (96, 96)


@dataclass(frozen=True)
class Case:
    """A data rank's batch: samples of a shape in frames and pixels, and the dtype of their text."""

    shape: tuple[int, int, int]
    samples: int
    text: torch.dtype = torch.bfloat16

    def encoded(self) -> list[Encoded]:
        generator = torch.Generator().manual_seed(0)
        latent = LATENT_CHANNELS, *latent_shape(*self.shape)
        return [
            Encoded(
                i,
                f"clip-{i}",
                torch.randn(latent, generator=generator),
                torch.randn(TEXT, generator=generator).to(self.text),
                torch.randn(POOLED, generator=generator).to(self.text),
            )
            for i in range(self.samples)
        ]

    def sample(self, encoded: Encoded) -> Sample:
        """What a plan would say of it."""
        clip = Clip(encoded.clip_id, "", 0, 5, 1, 1, 0, 0, 1, 1, "", "", "16x9", 5)
        return Sample(encoded.index, clip, clip.bucket, Shape(*self.shape), "", 0, 0)


CASES = {
    "stage 2, 8 videos": Case((125, 288, 288), 8),
    "stage 2, 16 videos": Case((125, 288, 288), 16, torch.float32),
    "stage 3, 4 videos": Case((125, 432, 768), 4),
    "stage 3, 12 videos": Case((125, 432, 768), 12, torch.float32),
}


def small_data(folder: Path, clips: int = 6, seconds: int = 2) -> str:
    """Write clips with different moving patterns, and a manifest of them; returns the manifest's URI."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(clips):
        path = folder / f"source-{number}.mp4"
        _write_video(path, seconds * FPS, seed=number)
        height, width = SOURCE
        rows.append(
            {
                "clip_id": f"clip-{number:04d}",
                "source_uri": str(path),
                "start_s": 0.0,
                "end_s": float(seconds),
                "width": width,
                "height": height,
                "crop_x": 0,
                "crop_y": 0,
                "crop_w": width,
                "crop_h": height,
                "caption_short": f"pattern {number}",
                "caption_detailed": f"a pattern of kind {number} that moves to the right",
                "bucket_aspect": "1x1",
                "bucket_duration_s": seconds,
            }
        )
    (folder / "manifest").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "manifest" / "part-0.parquet")
    return str(folder / "manifest")


def small_recipe(steps: int, batch: int, frames: int = 9, side: int = 64) -> Recipe:
    """A recipe with the lite codec and text, for ``small_data``."""
    return Recipe(
        name="small",
        frames=frames,
        height=side,
        width=side,
        video_batch=batch,
        bucket_run=1,
        learning_rate=1e-3,
        warmup_steps=0,
        phases=(Phase(data="videos", steps=steps),),
        codec="lite",
        text="lite",
    )


def _write_video(path: Path, frames: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    still = random.integers(0, 255, (*SOURCE, 3), np.uint8).repeat(4, 0).repeat(4, 1)[: SOURCE[0], : SOURCE[1]]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *SOURCE, "yuv420p", 10**6
        for number in range(frames):
            picture = np.roll(still, 2 * number, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


class ServerProcess:
    """``python -m training.encode.server`` with these arguments; ``address`` waits until it listens."""

    def __init__(self, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "training.encode.server", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)

    @cached_property
    def address(self) -> str:
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        if words[:2] != ["listening", "on"]:
            raise RuntimeError(f"the encode server ended with status {self.process.wait()}")
        return words[2]

    def kill(self) -> None:
        """With SIGKILL, and wait for its end."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class _Ready(flight.FlightServerBase):
    """Sends samples that it has: what is measured is their way."""

    def __init__(self, samples: list[Encoded]) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._samples = samples

    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.GeneratorStream:
        return flight.GeneratorStream(STAMP.schema(), (wire.to_record(sample, STAMP) for sample in self._samples))


def _serve(case: Case, pipe: Connection) -> None:
    """The other process: a Flight server, and a bare socket that sends the same bytes to whoever connects."""
    torch.set_num_threads(1)
    samples = case.encoded()
    server, listener = _Ready(samples), socket.create_server(("127.0.0.1", 0))
    buffers = [tensor.flatten().view(torch.uint8).numpy() for sample in samples for tensor in tensors(sample)]

    def send() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                for buffer in buffers:
                    connection.sendall(buffer.data)

    threading.Thread(target=send, daemon=True).start()
    pipe.send((server.port, listener.getsockname()[1]))
    with contextlib.suppress(EOFError):
        pipe.recv()
    os._exit(0)


def tensors(sample: Encoded) -> list[torch.Tensor]:
    return [getattr(sample, name) for name in wire.TENSORS]


def transport(case: Case, repeats: int) -> dict[str, tuple[float, float, float]]:
    """For each part of a batch's way, quartiles of its seconds over those of a copy of the same bytes in memory."""
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(case, theirs), daemon=True)
    process.start()
    theirs.close()
    port, bare = pipe.recv()
    samples = case.encoded()
    source = torch.cat([tensor.flatten().view(torch.uint8) for sample in samples for tensor in tensors(sample)])
    target, arrives = torch.zeros_like(source), bytearray(source.numel())
    client = flight.connect(f"grpc://127.0.0.1:{port}")
    received: list[pa.RecordBatch] = []
    encoded: list[Encoded] = []
    records = [wire.to_record(sample, STAMP) for sample in samples]

    def receive() -> None:
        received[:] = [chunk.data for chunk in client.do_get(flight.Ticket(b""))]

    def socket_alone() -> None:
        view = memoryview(arrives)
        with socket.create_connection(("127.0.0.1", bare)) as connection:
            while view and (count := connection.recv_into(view)):
                view = view[count:]

    def read() -> None:
        encoded[:] = [wire.from_record(record) for record in received]

    def checks() -> None:
        for each, sample in zip(encoded, wanted, strict=True):
            check(each, sample)

    wanted = [case.sample(each) for each in samples]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        path = Path(folder) / "batch.arrow"

        def write() -> None:
            write_file(path, records)

        def map_and_stack() -> None:
            torch.stack([each.latents for each in read_file(path)[1]])

        parts: dict[str, Callable[[], object]] = {
            "a bare TCP socket": socket_alone,
            "Flight: sending and receiving": receive,
            "records to tensors (moved where misaligned)": read,
            "checking against the plan": checks,
            "writing the buffer's file": write,
            "trainer: mapping, and stacking latents": map_and_stack,
        }
        ratios: dict[str, list[float]] = {name: [] for name in parts}
        copies: list[float] = []
        for turn in range(repeats + 1):
            for name, part in parts.items():
                copy = seconds(lambda: target.copy_(source))
                took = seconds(part)
                if turn:  # the first warms up
                    ratios[name].append(took / copy)
                    copies.append(copy)
    pipe.close()
    process.join()
    print(f"  one thread copies {source.numel() / 1e6 / statistics.median(copies):.0f} MB/s")
    quartiles = {name: statistics.quantiles(each, n=4) for name, each in ratios.items()}
    return {name: (low, middle, high) for name, (low, middle, high) in quartiles.items()}


def print_transport(repeats: int) -> None:
    for name, case in CASES.items():
        print(f"{name}: {sum(tensor.nbytes for each in case.encoded() for tensor in tensors(each)) / 1e6:.0f} MB")
        for part, (low, middle, high) in transport(case, repeats).items():
            print(
                f"  {part:44} takes {middle:5.2f} ({low:.2f} to {high:.2f}) times a copy, {100 / middle:4.0f} % of it"
            )


def print_wait(steps: int, slack: float, least_s: float) -> None:
    """Training that sleeps ``slack`` times the ninth decile of what a batch takes to be fetched, at least ``least_s``.

    Taking a batch from the buffer costs some milliseconds whatever the step.
    """
    with tempfile.TemporaryDirectory() as folder:
        uri = small_data(Path(folder))
        recipe = small_recipe(steps, batch=4)
        recipe_file = Path(folder) / "small.yaml"
        recipe_file.write_text(recipe.model_dump_json())  # JSON is YAML
        manifest = open_manifest([uri])
        plan = BatchPlan(manifest, Job(recipe=recipe, seed=0, manifest=manifest.fingerprint))
        with ServerProcess(["--manifest", uri, "--recipe", str(recipe_file), "--port", "0"]) as server:
            fingerprint = load_encoder(None, recipe).fingerprint
            client = EncodeClient(Servers((server.address,)), plan, fingerprint)
            fetches = [seconds(partial(client.fetch, step)) for step in range(steps)]
            step_s = max(least_s, slack * statistics.quantiles(fetches[1:], n=10)[-1])
            encode = EncodeConfig(servers=(server.address,), buffer_gb=0.2)
            feed = BufferedFeed(Share((uri,), plan.job, encode, fingerprint))
            try:
                waits = []
                for step in range(steps):
                    waits.append(seconds(partial(feed.batch, step)))
                    time.sleep(step_s)
            finally:
                feed.close()
    share = sum(waits[1:]) / (sum(waits[1:]) + step_s * (steps - 1))
    print(
        f"a batch of {recipe.video_batch} takes {statistics.median(fetches) * 1e3:.0f} ms to be encoded and fetched, a "
        f"step {step_s * 1e3:.0f} ms\n  first batch after {waits[0]:.1f} s; of all later steps data wait is "
        f"{100 * share:.2f} %, the longest {max(waits[1:]) * 1e3:.1f} ms"
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=["transport", "wait"], default=["transport", "wait"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--slack", type=float, default=1.25, help="a training step, in times of fetching a batch")
    parser.add_argument("--least-step-s", type=float, default=0.3, help="seconds that a training step takes at least")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "transport" in options.part:
        print_transport(options.repeats)
    if "wait" in options.part:
        print_wait(options.steps, options.slack, options.least_step_s)


if __name__ == "__main__":
    main()
