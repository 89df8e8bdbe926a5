"""Generating the videos of a batch: what a file says of itself, what is made again, and what an error costs."""

import json

import pytest
import torch

from models.text_to_video import load_text_to_video
from models.video_file import read_generation_metadata
from tasks.generation.generate import GenerationConfig, OutOfMemory, fingerprint, is_made, make_videos, wanted_rows
from tasks.generation.model import Checkpoint
from tasks.generation.prompts import Prompt, requests, write_batches
from tasks.tables import storage
from tests.models.tiny_text_to_video import write_lite

CONFIG = GenerationConfig(frames=5, height=32, width=48, steps=2, codec="lite", text="lite", dtype="float32")
CHECKPOINT = Checkpoint("/models/a", "c0ffee")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite")
    write_lite(folder)
    return load_text_to_video(folder, codec="lite", text="lite", dtype=torch.float32)


def rows_for(root, *prompts, config=CONFIG, checkpoint=CHECKPOINT):
    (table,) = write_batches(requests([Prompt(prompt) for prompt in prompts], 0, 1), str(root), 8)
    return wanted_rows(table, checkpoint, config)


def test_a_video_says_how_it_was_made_and_is_known_by_it(tmp_path, model):
    (row,) = rows_for(tmp_path, "a cat")
    assert not is_made(row, str(tmp_path))
    make_videos(model, [row], str(tmp_path), CONFIG)
    found = read_generation_metadata(storage.join(str(tmp_path), "videos", "00000-a-cat-0.mp4"))
    assert (found.prompt, found.seed) == ("a cat", 0)
    marks = {"checkpoint": "c0ffee", "fingerprint": row["fingerprint"]}
    assert found.config == CONFIG.model_dump(mode="json") | marks
    assert GenerationConfig.model_validate(json.loads(row["config"])) == CONFIG
    assert row["error"] is None and row["seconds"] > 0
    assert is_made(row, str(tmp_path))


def test_a_video_made_otherwise_is_not_taken_for_the_one_that_is_wanted(tmp_path, model):
    make_videos(model, rows_for(tmp_path, "a cat"), str(tmp_path), CONFIG)
    (more_steps,) = rows_for(tmp_path, "a cat", config=CONFIG.model_copy(update={"steps": 3}))
    (trained_on,) = rows_for(tmp_path, "a cat", checkpoint=Checkpoint("/models/a", "beef"))
    (moved,) = rows_for(tmp_path, "a cat", checkpoint=Checkpoint("/elsewhere", "c0ffee"))
    assert not is_made(more_steps, str(tmp_path)) and not is_made(trained_on, str(tmp_path))
    assert is_made(moved, str(tmp_path))
    (tmp_path / "videos" / "00000-a-cat-0.mp4").write_bytes(b"torn")
    assert not is_made(moved, str(tmp_path))


def test_the_fingerprint_covers_every_setting():
    base = fingerprint("a", 0, CHECKPOINT, CONFIG)
    others = {
        "frames": 9, "height": 48, "width": 64, "fps": 30, "steps": 3, "guidance": 1.0, "shift": 1.0,
        "negative_prompt": "b", "codec": "wan", "text": "sd3", "dtype": "bfloat16", "decode_memory_gb": 1.0, "crf": 20,
    }  # fmt: skip
    assert set(others) == set(GenerationConfig.model_fields)
    changed = {fingerprint("a", 0, CHECKPOINT, CONFIG.model_copy(update={k: v})) for k, v in others.items()}
    changed |= {fingerprint("b", 0, CHECKPOINT, CONFIG), fingerprint("a", 1, CHECKPOINT, CONFIG)}
    assert len(changed - {base}) == len(others) + 2


def test_a_prompt_that_fails_costs_its_batch_nothing_else(tmp_path, model):
    rows = rows_for(tmp_path, "a cat", "a\0dog", "a bird")
    make_videos(model, rows, str(tmp_path), CONFIG)
    assert [row["error"] for row in rows] == [None, "generate: the prompt has a NUL character in it", None]
    assert [is_made(row, str(tmp_path)) for row in rows] == [True, False, True]
    assert rows[1]["seconds"] is None


def test_a_model_that_gives_no_numbers_is_an_error_of_the_row_not_a_black_video(tmp_path, model):
    weight = model.transformer.proj_out.bias
    before = weight.clone()
    weight.fill_(float("nan"))
    (row,) = rows_for(tmp_path, "a cat")
    make_videos(model, [row], str(tmp_path), CONFIG)
    weight.copy_(before)
    assert "no numbers" in row["error"] and not is_made(row, str(tmp_path))


@pytest.mark.parametrize("prompts, advice", [(["a", "b"], "set batch_size to less"), (["a"], "ask for fewer frames")])
def test_no_memory_ends_the_run_and_says_what_asks_for_less(tmp_path, model, prompts, advice):
    huge = CONFIG.model_copy(update={"frames": 400_001, "height": 16_384, "width": 16_384})
    with pytest.raises(OutOfMemory, match=advice):
        make_videos(model, rows_for(tmp_path, *prompts, config=huge), str(tmp_path), huge)


def test_a_full_disk_is_no_error_of_a_prompt(tmp_path, model, monkeypatch):
    rows = rows_for(tmp_path, "a cat", "a dog")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_videos(model, rows, str(tmp_path), CONFIG)
    assert not list((tmp_path / "videos").iterdir())
