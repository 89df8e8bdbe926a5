"""adapt-checkpoint: from the folder of an image model to that of a video model."""

from pathlib import Path

from flows.adapt_checkpoint import main
from models.checkpoint import load_transformer
from tests.models.tiny_text_to_video import write_image_model


def test_command_writes_the_video_model_and_says_what_was_reused(tmp_path: Path, capsys) -> None:
    write_image_model(tmp_path / "image")
    assert main([str(tmp_path / "image"), str(tmp_path / "video")]) == 0
    said = capsys.readouterr().out
    assert "pos_embed.pos_embed" in said and "reused" in said
    assert load_transformer(tmp_path / "video" / "transformer").config.num_layers == 2


def test_it_overwrites_nothing_and_names_what_is_missing(tmp_path: Path, capsys) -> None:
    write_image_model(tmp_path / "image")
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "video")]) == 2
    assert "nowhere" in capsys.readouterr().err
    arguments = [str(tmp_path / "image"), str(tmp_path / "video")]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "never overwritten" in capsys.readouterr().err
