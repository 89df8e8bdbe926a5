"""The registry of weights: all that is missing is told at once, each with what brings it, and nothing is fetched."""

import json
import os
import shlex
from pathlib import Path

import pytest

from models.scoring.state_dict import read_state_dict
from models.scoring.weights import CHECKPOINTS, find, hash_of, located, missing, weights_folder
from tests.models.scoring.tiny_networks import write_laion_head

HEAD = "sac+logos+ava1-l14-linearMSE.pth"


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants
    import huggingface_hub.file_download as file_download

    for module in (constants, file_download):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"))


def put(folder: Path, name: str) -> None:
    for file in CHECKPOINTS[name].files:
        (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / file).write_text('{"weight_map": {}}' if file.endswith(".index.json") else f"{name} {file}")


def snapshot(hub: Path, name: str, files: tuple[str, ...]) -> Path:
    """The cache of Hugging Face with these files of a checkpoint."""
    owner, repository = CHECKPOINTS[name].repository.split("/")
    root = hub / f"models--{owner}--{repository}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc123")
    for file in files:
        (root / "snapshots" / "abc123" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "snapshots" / "abc123" / file).write_text("cached")
    return root / "snapshots" / "abc123"


def test_every_missing_checkpoint_has_a_message_with_its_command(tmp_path):
    put(tmp_path, "clip")
    messages = missing([*CHECKPOINTS, "gmflow"], tmp_path)
    assert len(messages) == len(CHECKPOINTS) - 1
    for name, message in zip([name for name in CHECKPOINTS if name != "clip"], messages, strict=True):
        checkpoint = CHECKPOINTS[name]
        assert message.startswith(f"{name} ({checkpoint.title}; licence: {checkpoint.licence}) is not there")
        assert all(file in message for file in checkpoint.files)
        assert message.endswith(checkpoint.command(tmp_path))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_command_brings_what_is_looked_for_to_where_it_is_looked_for(tmp_path, name):
    folder = tmp_path / "a folder"
    words = shlex.split(CHECKPOINTS[name].command(folder))
    target = Path(words[words.index("--output" if words[0] == "curl" else "--local-dir") + 1])
    if words[0] == "curl":
        assert target == folder / name / CHECKPOINTS[name].files[0]
        assert len(CHECKPOINTS[name].files) == 1 and words[-1].startswith("https://")
    else:
        assert words[:3] == ["hf", "download", CHECKPOINTS[name].repository]
        assert target == folder / name
        assert set(words[3:-2]) == (set() if CHECKPOINTS[name].whole else set(CHECKPOINTS[name].files))


def test_one_file_of_several_is_not_enough_and_only_what_lacks_is_named(tmp_path):
    put(tmp_path, "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    assert find("clip", tmp_path) is None
    (message,) = missing(["clip"], tmp_path)
    assert "is not there: open_clip_model.safetensors looked for" in message
    with pytest.raises(FileNotFoundError, match="hf download timm/vit_large_patch14_clip_224"):
        located("clip", tmp_path)


def test_a_shard_that_its_index_names_must_be_there_and_is_part_of_the_hash(tmp_path):
    put(tmp_path, "caption-7b")
    folder = tmp_path / "caption-7b"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2"}}))
    (folder / "1.safetensors").write_text("one")
    (message,) = missing(["caption-7b"], tmp_path)
    assert "is not there: 2 looked for" in message
    (folder / "2").write_text("two")
    assert missing(["caption-7b"], tmp_path) == []
    before = hash_of("caption-7b", tmp_path)
    (folder / "2").write_text("another")
    assert hash_of("caption-7b", tmp_path) != before
    assert located("caption-7b", tmp_path) == folder


def test_the_weights_folder_comes_first_and_then_the_cache_of_hugging_face(tmp_path):
    place = snapshot(tmp_path / "hub", "clip", CHECKPOINTS["clip"].files)
    assert located("clip", tmp_path) == place
    assert missing(["clip"], tmp_path) == []
    put(tmp_path, "clip")
    assert located("clip", tmp_path) == tmp_path / "clip"


def test_half_a_snapshot_is_missing(tmp_path):
    snapshot(tmp_path / "hub", "clip", CHECKPOINTS["clip"].files[:1])
    assert find("clip", tmp_path) is None


def test_the_folder_is_that_of_the_run_or_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTENTV_WEIGHTS", str(tmp_path))
    assert weights_folder() == tmp_path
    assert weights_folder("other") == Path("other")
    put(tmp_path, "gmflow")
    assert located("gmflow") == tmp_path / "gmflow" / CHECKPOINTS["gmflow"].files[0]
    monkeypatch.delenv("CONTENTV_WEIGHTS")
    assert weights_folder() == Path("weights")


def test_the_hash_is_that_of_the_content_wherever_it_lies(tmp_path):
    put(tmp_path / "one", "clip")
    put(tmp_path / "two", "clip")
    assert hash_of("clip", tmp_path / "one") == hash_of("clip", tmp_path / "two")
    before = hash_of("clip", tmp_path / "two")
    file = tmp_path / "two" / "clip" / "open_clip_config.json"
    file.write_text(json.dumps({"changed": True}))
    os.utime(file, ns=(1, 1))
    assert hash_of("clip", tmp_path / "two") != before
    with pytest.raises(FileNotFoundError, match="This brings it: curl"):
        hash_of("gmflow", tmp_path / "one")


def test_a_name_that_is_not_known_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(KeyError, match="no weights are called 'gmflo'; there are aesthetic, caption-72b"):
        find("gmflo", tmp_path)


def test_what_is_found_loads(tmp_path):
    write_laion_head(tmp_path / "aesthetic" / HEAD)
    assert "layers.7.bias" in read_state_dict(located("aesthetic", tmp_path))
