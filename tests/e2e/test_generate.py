"""From checkpoints in their published layouts on disk to mp4 files, as a user runs it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from flows.generate import generate
from models.video_file import read_generation_metadata
from tasks.generation.generate import GenerationConfig
from tasks.tables import storage
from tests.models.tiny_text_to_video import write_text_to_video
from tests.tasks.rows import clip, wide

CONFIG = GenerationConfig(frames=9, height=48, width=64, steps=8, dtype="float32")
PROMPTS = [f"a cat runs after {number} dogs" for number in range(4)]
RUN = """
import sys
from flows.generate import generate
from tasks.generation.generate import GenerationConfig
checkpoint, output, prompts, config = sys.argv[1:]
generate(checkpoint, output, prompts_from=prompts, devices=["cpu"], config=GenerationConfig.model_validate_json(config))
"""


def digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("videos/*.mp4"))}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An SD3.5 folder adapted to video, with the Wan VAE and the three text encoders beside it: a ContentV folder."""
    folder = tmp_path_factory.mktemp("contentv")
    write_text_to_video(folder)
    return str(folder)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return str(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint, prompts, prefect_api):
    """What a run that nothing disturbs leaves."""
    out = tmp_path_factory.mktemp("whole")
    generate(checkpoint, str(out), prompts_from=prompts, devices=["cpu"], config=CONFIG)
    return out


def test_every_prompt_is_an_h264_video_of_the_size_asked_for_that_says_how_it_was_made(whole):
    rows = storage.read_table(str(whole / "videos.parquet")).to_pylist()
    assert [row["prompt"] for row in rows] == PROMPTS
    for row in rows:
        with av.open(str(whole / row["uri"])) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 64, 48)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(frames) == 9 and frames[4].std() > 1
        made = read_generation_metadata(str(whole / row["uri"]))
        assert (made.prompt, made.seed) == (row["prompt"], row["seed"])
        assert GenerationConfig.model_validate({k: made.config[k] for k in GenerationConfig.model_fields}) == CONFIG
    assert len(set(digests(whole).values())) == len(PROMPTS)


def test_another_process_that_is_killed_and_a_third_that_goes_on_give_the_same_bytes(
    whole, checkpoint, prompts, prefect_api, tmp_path
):
    command = [sys.executable, "-c", RUN, checkpoint, str(tmp_path), prompts, CONFIG.model_dump_json()]
    environment = os.environ | {"PREFECT_API_URL": prefect_api}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not digests(tmp_path):
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() in (0, -signal.SIGKILL)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("videos/*.mp4")}

    generate(checkpoint, str(tmp_path), prompts_from=prompts, devices=["cpu"], config=CONFIG)
    assert first and all(path.stat().st_mtime_ns == written for path, written in first.items())
    assert digests(tmp_path) == digests(whole)
    assert json.loads((tmp_path / "run.json").read_text())["counts"]["videos"] == len(PROMPTS)


def test_the_captions_of_a_manifest_are_prompts(checkpoint, prefect_api, tmp_path):
    captions = {"caption_short": "a cat", "caption_detailed": "a cat runs on the grass"}
    table = wide(tmp_path, [clip(**captions)])
    storage.write_table(storage.read_table(table), str(tmp_path / "manifest/aspect=16x9/duration=5/part-00000.parquet"))
    small = CONFIG.model_copy(update={"steps": 1, "frames": 1, "dtype": "bfloat16"})
    generate(checkpoint, str(tmp_path / "out"), prompts_from=str(tmp_path / "manifest"), devices=["cpu"], config=small)
    (video,) = (tmp_path / "out" / "videos").iterdir()
    assert read_generation_metadata(str(video)).prompt == captions["caption_detailed"]
