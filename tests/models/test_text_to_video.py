"""Text to video from checkpoints on disk, in the layouts in which the real ones are published."""

import shutil

import pytest
import torch

from models.checkpoint import CheckpointError
from models.sampler import seeded_noise
from models.text_to_video import check_checkpoint, load_text_to_video
from tests.models.tiny_checkpoints import write_text_encoders
from tests.models.tiny_text_to_video import write_image_model, write_lite, write_text_to_video

SMALL = {"frames": 5, "height": 32, "width": 48, "steps": 3}
PROMPTS = ["a cat runs", "the dog and a cat, running"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contentv")
    write_text_to_video(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_text_to_video(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite")
    write_lite(folder)
    return folder


def test_a_published_layout_makes_videos_of_the_size_asked_for(model):
    videos = model.generate(PROMPTS, [1, 2], **SMALL)
    assert videos.shape == (2, 3, 5, 32, 48)
    assert videos.isfinite().all() and videos.abs().max() <= 1
    assert videos.std() > 0.01


def test_the_prompt_the_seed_and_the_guidance_each_change_the_video(model):
    base = model.sample(PROMPTS[:1], [1], **SMALL)
    assert torch.equal(base, model.sample(PROMPTS[:1], [1], **SMALL))
    for other in (
        model.sample(PROMPTS[1:], [1], **SMALL),
        model.sample(PROMPTS[:1], [2], **SMALL),
        model.sample(PROMPTS[:1], [1], guidance=1.0, **SMALL),
        model.sample(PROMPTS[:1], [1], negative_prompt="the dog", **SMALL),
        model.sample(PROMPTS[:1], [1], shift=1.0, **SMALL),
    ):
        assert (base - other).abs().max() > 1e-4


def test_a_video_does_not_depend_on_the_batch_it_was_made_in(model):
    """The noise is the same to the bit; the rest to rounding: a batch changes the order in which products sum."""
    together = model.sample(PROMPTS, [7, 8], **SMALL)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, [7, 8], strict=True)):
        alone = model.sample([prompt], [seed], **SMALL)
        assert (together[row] - alone[0]).abs().max() < 1e-4
    assert torch.equal(seeded_noise((16, 2, 4, 6), [7, 8])[1], seeded_noise((16, 2, 4, 6), [8])[0])


def test_a_prompt_that_is_longer_than_the_text_window_is_told(model, caplog):
    model.sample(["a cat", "dog " * 400], [0, 1], **SMALL)
    assert len(caplog.messages) == 1 and "beyond the window" in caplog.text


def test_an_image_is_a_video_of_one_frame(model):
    assert model.generate(PROMPTS[:1], [0], **(SMALL | {"frames": 1})).shape == (1, 3, 1, 32, 48)


def test_sizes_that_do_not_fit_name_the_nearest_that_does(model):
    with pytest.raises(ValueError, match=r"126 frames.* nearest is 125"):
        model.sample(PROMPTS[:1], [0], frames=126)
    with pytest.raises(ValueError, match=r"height 430 .* nearest is 432"):
        model.sample(PROMPTS[:1], [0], height=430)


def test_the_transformer_is_bfloat16_by_default_and_its_latents_are_not_rounded(folder):
    model = load_text_to_video(folder)
    assert {weight.dtype for weight in model.transformer.parameters()} == {torch.bfloat16}
    latents = model.sample(PROMPTS[:1], [0], **SMALL)
    assert latents.dtype == torch.float32
    assert not torch.equal(latents, latents.bfloat16().float())


def test_with_codec_and_text_lite_only_the_transformer_is_needed(lite):
    model = load_text_to_video(lite, codec="lite", text="lite", dtype=torch.float32)
    assert model.generate(PROMPTS, [1, 2], **SMALL).shape == (2, 3, 5, 32, 48)


def test_nothing_falls_back_what_is_missing_is_named_with_what_to_pass(lite):
    with pytest.raises(FileNotFoundError) as problem:
        check_checkpoint(lite, "wan", "sd3")
    message = str(problem.value)
    for part in ("vae/config.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder_3/model.safetensors"):
        assert part in message
    assert "tokenizer_2/" in message and str(lite) in message
    assert "codec 'lite'" in message and "text 'lite'" in message
    with pytest.raises(FileNotFoundError, match="lacks vae/"):
        load_text_to_video(lite, codec="wan", text="lite")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_text_to_video(lite / "nowhere")


def test_a_missing_shard_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "torn")
    shard = sorted((tmp_path / "torn" / "transformer").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks transformer/{shard.name}:"):
        check_checkpoint(tmp_path / "torn", "wan", "sd3")


def test_an_image_model_that_was_not_adapted_is_told_by_its_keys(tmp_path):
    write_image_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"pos_embed\.pos_embed"):
        check_checkpoint(tmp_path, "lite", "lite")


def test_text_encoders_of_another_checkpoint_are_told_before_sampling(folder, tmp_path):
    shutil.copytree(folder / "transformer", tmp_path / "transformer")
    write_text_encoders(tmp_path, t5_width=48)
    with pytest.raises(ValueError, match=r"tokens of width 48 .* the transformer takes 64"):
        load_text_to_video(tmp_path, codec="lite")


def test_the_checkpoints_files_are_those_that_are_read(folder):
    (folder / "README.md").write_text("a note")
    files = check_checkpoint(folder, "wan", "sd3")
    parts = {file.parent.name for file in files}
    assert parts == {"transformer", "vae"} | {
        f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")
    }
    assert {file.parent.name for file in check_checkpoint(folder, "lite", "lite")} == {"transformer"}
