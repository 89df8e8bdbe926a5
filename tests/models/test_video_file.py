"""Video files: what is written can be seen, read back and made again, to the byte."""

import av
import numpy as np
import pytest
import torch

from models.video_file import GenerationMetadata, encode_video, read_generation_metadata, to_uint8, write_video

METADATA = GenerationMetadata(
    'A "cat" on a mat, naïve café 猫; a|b\nsecond line = yes',
    2**40 + 7,
    {"steps": 50, "guidance": 6.0, "size": [432, 768]},
)


def gradient(frames: int = 9, height: int = 48, width: int = 64) -> torch.Tensor:
    """A smooth picture that drifts to the right: [3, F, H, W] in [-1, 1]."""
    x = torch.linspace(0, 3, width).expand(frames, height, width) + torch.arange(frames).view(-1, 1, 1) / 8
    y = torch.linspace(0, 3, height).view(1, -1, 1).expand_as(x)
    return torch.stack([torch.sin(x), torch.cos(y), torch.sin(x + y)])


def decode(path) -> tuple[np.ndarray, av.container.InputContainer]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), container


def test_pictures_come_back_as_they_were(tmp_path):
    video = gradient()
    write_video(video, str(tmp_path / "a.mp4"), METADATA)
    frames, _ = decode(tmp_path / "a.mp4")
    truth = np.stack(list(to_uint8(video))).astype(float)
    assert frames.shape == truth.shape == (9, 48, 64, 3)
    psnr = 10 * np.log10(255**2 / np.mean((frames - truth) ** 2))
    assert psnr > 36


def test_colours_are_those_of_the_tensor_in_the_standard_that_the_file_names(tmp_path):
    colour = torch.tensor([0.8, -0.4, 0.1]).view(3, 1, 1, 1).expand(3, 1, 32, 32)
    write_video(colour, str(tmp_path / "a.mp4"), METADATA)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        frame = next(container.decode(video=0))
    np.testing.assert_allclose(frame.to_ndarray(format="rgb24")[16, 16], [230, 76, 140], atol=4)
    luma = 16 + 219 / 255 * np.dot([0.2126, 0.7152, 0.0722], [230, 76, 140])
    assert frame.to_ndarray()[16, 16] == pytest.approx(luma, abs=1)


def test_values_map_to_0_and_255_and_what_lies_outside_is_clipped():
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5).expand(3, 1, 2, 5)
    (frame,) = to_uint8(values)
    assert frame.dtype == np.uint8 and frame.shape == (2, 5, 3)
    assert frame[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("fps", [24, 30])
def test_frame_rate_and_length_are_those_asked_for(tmp_path, fps):
    write_video(gradient(), str(tmp_path / "a.mp4"), METADATA, fps=fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (fps, 9)
        assert container.duration / av.time_base == pytest.approx(9 / fps, abs=1e-3)


def test_a_picture_is_a_video_of_one_frame(tmp_path):
    write_video(gradient(frames=1), str(tmp_path / "a.mp4"), METADATA)
    assert decode(tmp_path / "a.mp4")[0].shape == (1, 48, 64, 3)


def test_prompt_seed_and_config_are_read_back(tmp_path):
    write_video(gradient(), str(tmp_path / "a.mp4"), METADATA)
    assert read_generation_metadata(str(tmp_path / "a.mp4")) == METADATA


def test_the_same_frames_and_tags_give_the_same_bytes_whatever_memory_held_before():
    """x264's macroblock tree fails this about once in three encodings of these frames."""
    generator = np.random.default_rng(0)
    held, encodings = [], set()
    for turn in range(60):
        encodings.add(encode_video(gradient(), METADATA))
        held.append(generator.bytes(int(generator.integers(100, 100_000))))
        held = held[::3] if turn % 7 == 0 else held
    assert len(encodings) == 1


def test_no_date_and_no_version_of_the_muxer_is_in_the_file_and_tags_change_it():
    assert b"Lavf" not in encode_video(gradient(), METADATA)
    assert encode_video(gradient(), GenerationMetadata("other", 1)) != encode_video(gradient(), METADATA)


def test_files_are_written_through_fsspec_whole_or_not_at_all(tmp_path, monkeypatch):
    write_video(gradient(), "memory://generated/a.mp4", METADATA)
    assert read_generation_metadata("memory://generated/a.mp4") == METADATA
    target = tmp_path / "new" / "a.mp4"
    write_video(gradient(), str(target), METADATA)
    before = target.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_video(gradient() * 0, str(target), METADATA)
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    "video, words",
    [
        (torch.zeros(3, 1, 15, 16), "even sides, not 16 x 15"),
        (torch.zeros(1, 3, 5, 16, 16), r"\[3, frames, height, width\], not \[1, 3, 5, 16, 16\]"),
        (torch.zeros(3, 0, 16, 16), "not \\[3, 0, 16, 16\\]"),
        (torch.full((3, 1, 16, 16), float("nan")), "no numbers"),
    ],
)
def test_what_cannot_be_written_is_said(video, words):
    with pytest.raises(ValueError, match=words):
        encode_video(video, METADATA)


def test_a_prompt_with_a_nul_is_an_error_as_a_tag_would_end_there():
    with pytest.raises(ValueError, match="NUL"):
        encode_video(gradient(), GenerationMetadata("a\0b", 0))


def test_files_that_are_not_ours_are_named(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read as a video"):
        read_generation_metadata(str(tmp_path / "a.mp4"))
    with av.open(str(tmp_path / "b.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"b\.mp4 has no tag 'prompt'"):
        read_generation_metadata(str(tmp_path / "b.mp4"))
