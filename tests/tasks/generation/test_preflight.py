"""Preflight of generation: what is wrong is told before any work."""

import pytest
from pydantic import ValidationError

from tasks.generation.generate import GenerationConfig
from tasks.generation.preflight import PromptSource, check_devices, find_checkpoint, find_prompts
from tasks.generation.prompts import Prompt
from tasks.tables.checks import PreflightError
from tests.models.tiny_text_to_video import write_image_model, write_lite

LITE = GenerationConfig(codec="lite", text="lite")


def test_prompts_are_typed_in_or_from_a_file_and_not_both(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    file = str(tmp_path / "p.txt")
    assert find_prompts(PromptSource([" a cat ", ""])) == [Prompt("a cat")]
    assert find_prompts(PromptSource(None, file, limit=1)) == [Prompt("a cat")]
    assert find_prompts(PromptSource([], file)) == [Prompt("a cat"), Prompt("a dog")]
    for prompts, source in ((None, None), (["  "], None), (["a"], file)):
        with pytest.raises(PreflightError, match="either 'prompts'"):
            find_prompts(PromptSource(prompts, source))


def test_a_checkpoint_is_known_by_the_bytes_that_are_read_not_by_where_it_lies(tmp_path):
    write_lite(tmp_path / "a")
    found = find_checkpoint(str(tmp_path / "a"), LITE)
    (tmp_path / "a" / "notes.txt").write_text("not read")
    (tmp_path / "a").rename(tmp_path / "b")
    moved = find_checkpoint(str(tmp_path / "b"), LITE)
    assert moved.content == found.content and moved.folder == str(tmp_path / "b")
    weights = tmp_path / "b" / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert find_checkpoint(str(tmp_path / "b"), LITE).content != found.content


def test_what_a_checkpoint_lacks_is_named(tmp_path):
    write_lite(tmp_path / "a")
    with pytest.raises(PreflightError, match=r"lacks .*vae/config\.json.*pass codec 'lite'"):
        find_checkpoint(str(tmp_path / "a"), GenerationConfig())
    with pytest.raises(PreflightError, match="is no folder"):
        find_checkpoint(str(tmp_path / "nowhere"), LITE)
    write_image_model(tmp_path / "image")
    with pytest.raises(PreflightError, match=r"pos_embed\.pos_embed"):
        find_checkpoint(str(tmp_path / "image"), LITE)
    weights = tmp_path / "a" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PreflightError, match="cut off"):
        find_checkpoint(str(tmp_path / "a"), LITE)


def test_devices_are_those_named_or_those_that_there_are():
    assert check_devices(["cpu", "cpu"]) == ["cpu"]
    assert check_devices(None) and check_devices([]) == check_devices(None)
    with pytest.raises(PreflightError, match="device 'nonsense' cannot be used"):
        check_devices(["nonsense"])


@pytest.mark.parametrize("name", ["guidance", "shift", "decode_memory_gb"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1])
def test_a_number_that_would_make_no_video_is_refused_by_name(name, value):
    with pytest.raises(ValidationError, match=name):
        GenerationConfig.model_validate({name: value})


@pytest.mark.parametrize("name", ["frames", "height", "width", "fps", "steps"])
def test_a_size_of_zero_is_refused_by_name(name):
    with pytest.raises(ValidationError, match=name):
        GenerationConfig.model_validate({name: 0})
