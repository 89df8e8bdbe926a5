"""VideoCLIP-XL: the published features and similarities from raw video and token ids."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoint import CheckpointError
from models.scoring.videoclip_xl import (
    CONTEXT,
    VideoClipConfig,
    VideoClipXL,
    frame_indices,
    load_videoclip_xl,
    similarity,
    tokenize,
    video_pixels,
)
from tests.models.weights import fill

DATA = Path(__file__).parents[2] / "data"


def size() -> VideoClipConfig:
    values = json.loads((DATA / "videoclip_xl_tiny_keys.json").read_text())["config"]
    return VideoClipConfig(**{{"sot": "start", "eot": "end"}.get(name, name): value for name, value in values.items()})


@pytest.fixture(scope="module")
def network() -> VideoClipXL:
    return fill(VideoClipXL(size())).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "videoclip_xl_tiny_public.npz"))


def pixels(golden, video: int, side: int = 56) -> Tensor:
    frames = golden[f"video{video}"]
    return video_pixels(frames[frame_indices(len(frames))], side)


def test_frames_and_pixels_are_the_published_ones(golden) -> None:
    for video in (0, 1):
        assert frame_indices(len(golden[f"video{video}"])) == golden[f"frame_index{video}"].tolist()
    small = np.stack([pixels(golden, video).numpy() for video in (0, 1)]).astype(np.float64)
    assert np.abs([small.sum(), np.square(small).sum()] - golden["pixels56_checksum"]).max() < 1e-6
    assert np.array_equal(small[:, [0, 7], :, ::11, ::11], golden["pixels56_slice"])
    assert np.array_equal(pixels(golden, 0, 224)[[0, 7], :, ::37, ::37], golden["pixels224_slice"])


def test_features_and_similarities_are_the_published_ones(network, golden) -> None:
    videos = network.video_features(torch.stack([pixels(golden, 0), pixels(golden, 1)]))
    texts = network.text_features(torch.from_numpy(golden["tokens"]))
    assert (videos - torch.from_numpy(golden["video_features"])).abs().max() < 1e-5
    assert (texts - torch.from_numpy(golden["text_features"])).abs().max() < 1e-5
    assert (similarity(texts, videos) - torch.from_numpy(golden["sim"])).abs().max() < 1e-4  # of 100


def test_one_frame_is_an_image_with_the_mean_of_the_temporal_positions(network, golden) -> None:
    image = torch.stack([pixels(golden, video)[:1] for video in (0, 1)])
    expected = torch.from_numpy(golden["image_feature_one_frame"])
    assert (network.video_features(image) - expected).abs().max() < 1e-5


def test_frames_are_taken_from_the_start_and_repeated_where_there_are_too_few() -> None:
    assert frame_indices(125) == [0, 15, 30, 45, 60, 75, 90, 105]
    assert frame_indices(3) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert frame_indices(1) == [0] * 8
    with pytest.raises(ValueError, match="at least one frame"):
        frame_indices(0)


def test_what_follows_the_end_token_plays_no_part(network, golden) -> None:
    tokens = torch.from_numpy(golden["tokens"]).long()
    other = tokens.clone()
    for row in range(len(tokens)):
        other[row, int(tokens[row].argmax()) + 1 :] = 7
    assert (network.text_features(other) - network.text_features(tokens)).abs().max() < 1e-6


def test_batches_do_not_mix_and_other_dtypes_are_close(network, golden) -> None:
    both = torch.stack([pixels(golden, 0), pixels(golden, 1)])
    together = network.video_features(both)
    alone = torch.cat([network.video_features(both[:1]), network.video_features(both[1:])])
    assert (together - alone).abs().max() < 1e-5
    double = fill(VideoClipXL(size()).double()).eval().requires_grad_(False)
    assert double.video_features(both).dtype == torch.float64
    assert (double.video_features(both) - together).abs().max() < 1e-4
    text = network.text_features(torch.from_numpy(golden["tokens"]))
    assert similarity(text.bfloat16(), together.bfloat16()).dtype == torch.float32


class Words:
    """A tokenizer as transformers': a number for each word between the start and the end token."""

    def __call__(self, texts: list[str], verbose: bool) -> "Words":
        self.input_ids = [[510, *range(1, 1 + len(text.split())), 511] for text in texts]
        return self


def test_long_texts_keep_their_first_tokens_and_an_end_token() -> None:
    ids = tokenize(Words(), ["a b", " ".join("x" * 300)])
    assert ids.shape == (2, CONTEXT)
    assert ids[0, :5].tolist() == [510, 1, 2, 511, 0]
    assert ids[1, -2:].tolist() == [246, 511]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.video_features(torch.zeros(1, 5, 3, 56, 56)), "8 frames or 1"),
        (lambda n: n.video_features(torch.zeros(1, 8, 3, 56, 64)), "56, 56"),
        (lambda n: n.text_features(torch.zeros(1, 77, dtype=torch.long)), "248"),
        (lambda n: n.text_features(torch.zeros(1, 248, dtype=torch.long)), "end token"),
        (lambda n: video_pixels(np.zeros((8, 3, 9, 9), np.uint8)), "frames are uint8"),
    ],
)
def test_what_does_not_fit_is_refused(network, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(network)


def test_the_published_network_has_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        model = VideoClipXL()
    published = json.loads((DATA / "videoclip_xl_keys.json").read_text())
    state = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert state == published and len(state) == 449
    assert sum(parameter.numel() for parameter in model.parameters()) == 427_946_498


def test_files_load_with_exactly_their_keys(tmp_path, network, golden) -> None:
    state = network.state_dict()
    torch.save(state, tmp_path / "VideoCLIP-XL.bin")
    save_file(state, tmp_path / "model.safetensors")
    expected = network.text_features(torch.from_numpy(golden["tokens"]))
    for name in ("VideoCLIP-XL.bin", "model.safetensors"):
        loaded = load_videoclip_xl(tmp_path / name, config=size())
        assert torch.equal(loaded.text_features(torch.from_numpy(golden["tokens"])), expected)
    with pytest.raises(CheckpointError, match=r"of another shape|missing"):
        load_videoclip_xl(tmp_path / "model.safetensors")
    torch.save(network, tmp_path / "module.bin")
    with pytest.raises(CheckpointError, match="holds more than weights"):
        load_videoclip_xl(tmp_path / "module.bin", config=size())
    (tmp_path / "cut.bin").write_bytes((tmp_path / "VideoCLIP-XL.bin").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_videoclip_xl(tmp_path / "cut.bin", config=size())
    with pytest.raises(FileNotFoundError, match=r"absent\.bin"):
        load_videoclip_xl(tmp_path / "absent.bin")
