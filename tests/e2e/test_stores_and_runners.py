"""The same manifest, byte for byte, wherever the output lies and wherever the tasks run."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from benchmarks.sample_library import build
from flows.curate_videos import curate_videos
from tasks.tables import storage
from tasks.tables.lock import LOCK


def published(output: str) -> dict[str, bytes]:
    """The manifest and the clips of a run, by their names below its output."""
    found = {}
    for name in ("manifest", "clips"):
        for uri in storage.list_below(storage.join(output, name)):
            if uri.endswith(".parquet"):
                found[uri.removeprefix(output)] = storage.read_bytes(uri)
    return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> tuple[str, dict[str, bytes]]:
    """The quick sample library, and what a run in threads on the local disk makes of it."""
    folder = tmp_path_factory.mktemp("library")
    build(folder, quick=True)
    curate_videos(str(folder / "videos"), str(folder / "out"), sources_per_shard=3)
    return str(folder / "videos"), published(str(folder / "out"))


def test_on_a_store_in_memory(library: tuple[str, dict[str, bytes]]) -> None:
    videos, expected = library
    output = f"memory://out-{uuid.uuid4().hex}"
    curate_videos(videos, output, sources_per_shard=3)
    assert published(output) == expected != {}
    assert storage.exists(storage.join(output, "report.html"))


def test_on_s3_from_sources_on_s3(library: tuple[str, dict[str, bytes]], s3: str) -> None:
    videos, expected = library
    output = f"{s3}/out"
    curate_videos(videos, output, sources_per_shard=3)
    assert published(output) == expected
    assert storage.read_json(storage.join(output, "run.json"))["counts"][-1]["left"]
    for path in Path(videos).iterdir():
        with storage.writing(f"{s3}/videos/{path.name}") as file:
            file.write(path.read_bytes())
    curate_videos(f"{s3}/videos", f"{s3}/again", sources_per_shard=3)
    rows = [row for uri in _clips(f"{s3}/again") for row in storage.read_table(uri).to_pylist()]
    local = [row for uri in _clips(output) for row in storage.read_table(uri).to_pylist()]
    assert sorted(map(_told, rows)) == sorted(map(_told, local))
    assert all(row["source_uri"].startswith(s3) for row in rows)


def _clips(output: str) -> list[str]:
    return [uri for uri in storage.list_below(storage.join(output, "clips")) if uri.endswith(".parquet")]


def _told(row: dict[str, object]) -> str:
    """A row without where its source lies."""
    name = str(row["source_uri"]).rsplit("/", 1)[-1]
    return json.dumps([name, {key: value for key, value in row.items() if key not in ("source_uri", "error")}])


@pytest.mark.parametrize("runner", ["processes", "ray"])
def test_by_other_runners(library: tuple[str, dict[str, bytes]], tmp_path: Path, runner: str) -> None:
    if runner == "ray":
        pytest.importorskip("prefect_ray")
    videos, expected = library
    curate_videos(videos, str(tmp_path / "out"), runner=runner, sources_per_shard=3)  # type: ignore[arg-type]
    assert published(str(tmp_path / "out")) == expected


def test_by_ray_on_s3(library: tuple[str, dict[str, bytes]], s3: str) -> None:
    pytest.importorskip("prefect_ray")
    videos, expected = library
    curate_videos(videos, f"{s3}/out", runner="ray", sources_per_shard=3)
    assert published(f"{s3}/out") == expected


def test_killed_while_it_writes_to_s3_and_started_again(
    library: tuple[str, dict[str, bytes]], s3: str, prefect_api: str
) -> None:
    videos, expected = library
    command = [sys.executable, "-m", "flows.cli", videos, f"{s3}/out", "--sources-per-shard", "3"]
    environment = os.environ | {"PREFECT_API_URL": prefect_api}
    for reached in ("frames", "steps/cut", "steps/verdict"):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not storage.list_below(f"{s3}/out/{reached}"):
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        storage.remove(f"{s3}/out/{LOCK}")  # on an object store it would count as left behind after a minute
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert published(f"{s3}/out") == expected
