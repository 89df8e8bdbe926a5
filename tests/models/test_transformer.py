import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from models.checkpoint import read_config
from models.position import Grid, absolute
from models.transformer import ContentVTransformer, initialise, patchify, set_attention, token_grid, unpatchify
from tests.models.weights import SMALL, TINY, fill, inputs

DATA = Path(__file__).parents[1] / "data"


def test_the_published_model_gives_the_same_velocity() -> None:
    golden = {name: torch.from_numpy(array) for name, array in np.load(DATA / "contentv_dit_public.npz").items()}
    expected = golden.pop("sample")
    with torch.no_grad():
        velocity = fill(ContentVTransformer(**TINY))(**golden)
    assert (velocity - expected).abs().max() < 1e-5


def test_the_8b_model_has_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        model = ContentVTransformer()
    published = json.loads((DATA / "contentv_8b_keys.json").read_text())
    assert [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()] == list(published.items())
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_056_627_520
    assert model.config == read_config("8b")


def image_model(model: ContentVTransformer) -> SD3Transformer2DModel:
    """Stable Diffusion 3's transformer with the same weights, and with our positions of a 4 x 6 picture."""
    stock = SD3Transformer2DModel(**SMALL, caption_projection_dim=64, qk_norm="rms_norm", pos_embed_max_size=8)
    stock.load_state_dict(model.state_dict(), strict=False)
    # It crops positions from the middle of a square as large as the largest picture.
    stock.pos_embed.pos_embed.view(8, 8, 64)[2:6, 1:7] = absolute(Grid(1, 4, 6), 64).view(4, 6, 64)
    return stock


def test_a_single_frame_is_what_the_image_model_gives_with_its_position_embedding_replaced() -> None:
    model = fill(ContentVTransformer(**SMALL))
    video = inputs(frames=1)
    image = video | {"hidden_states": video["hidden_states"][:, :, 0]}
    with torch.no_grad():
        expected = image_model(model)(**image).sample
        velocity = model(**video)
    assert (velocity[:, :, 0] - expected).abs().max() < 1e-5
    assert expected.abs().max() > 1


def test_gradients_are_those_of_the_image_model() -> None:
    model = fill(ContentVTransformer(**SMALL))
    stock = image_model(model)
    video = inputs(frames=1)
    model(**video).square().mean().backward()
    stock(**video | {"hidden_states": video["hidden_states"][:, :, 0]}).sample.square().mean().backward()
    expected = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in model.named_parameters():
        scale = expected[name].abs().max().clamp(min=1e-3)
        assert (parameter.grad - expected[name]).abs().max() < 1e-5 * scale, name


def test_patches_are_frame_by_frame_row_by_row() -> None:
    latents = torch.arange(2 * 3 * 4 * 6).float().view(1, 2, 3, 4, 6)
    patches = patchify(latents, 2)
    assert patches.shape == (1, 3 * 2 * 3, 8)
    t, h, w = 2, 1, 2
    assert torch.equal(patches[0, (t * 2 + h) * 3 + w].view(2, 2, 2), latents[0, :, t, 2:4, 4:6])


def test_unpatchify_puts_every_token_where_it_was() -> None:
    latents = torch.randn(2, 5, 3, 4, 6)
    channels_last = patchify(latents, 2).unflatten(2, (5, 4)).transpose(2, 3).flatten(2)
    assert torch.equal(unpatchify(channels_last, token_grid(latents, 2), 2), latents)


def test_all_but_attention_treats_each_token_by_itself() -> None:
    """What sequence parallelism rests on: a shard of both streams gives the same shard of the output."""

    def stay(query: Tensor, key: Tensor, value: Tensor, video_tokens: int) -> Tensor:
        return query + key + value

    arguments = inputs()
    latents, text = arguments.pop("hidden_states"), arguments.pop("encoder_hidden_states")
    patches, grid = patchify(latents, 2), token_grid(latents, 2)
    shard = torch.tensor([5, 6, 40, 71])
    for position in ("absolute", "rotary"):
        model = fill(ContentVTransformer(**SMALL, position=position))
        set_attention(model, stay)
        with torch.no_grad():
            whole = model.forward_tokens(patches, text, **arguments, grid=grid)
            part = model.forward_tokens(patches[:, shard], text[:, :3], **arguments, grid=grid, indices=shard)
        assert torch.allclose(part, whole[:, shard], atol=1e-5)


def test_batches_do_not_mix() -> None:
    model = fill(ContentVTransformer(**SMALL))
    both = inputs()
    with torch.no_grad():
        together = model(**both)
        alone = model(**{name: tensor[1:] for name, tensor in both.items()})
    assert torch.allclose(together[1:], alone, atol=1e-5)


def test_a_new_model_predicts_nothing_and_learns() -> None:
    torch.manual_seed(0)
    model = ContentVTransformer(**SMALL)
    arguments = inputs()
    assert not model(**arguments).any()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    target = torch.randn(arguments["hidden_states"].shape, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(60):
        loss = (model(**arguments) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_model_made_on_the_meta_device_can_start_anew() -> None:
    with torch.device("meta"):
        model = ContentVTransformer(**SMALL)
    for tensor in model.to_empty(device="cpu").state_dict().values():
        tensor.fill_(torch.nan)
    initialise(model)
    with torch.no_grad():
        assert not model(**inputs()).any()


def test_bfloat16_stays_near_float32() -> None:
    arguments = inputs()
    with torch.no_grad():
        exact = fill(ContentVTransformer(**SMALL))(**arguments)
        rounded = fill(ContentVTransformer(**SMALL)).bfloat16()(**arguments)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_under_autocast_gives_gradients_near_those_without(dtype: torch.dtype) -> None:
    arguments = inputs()
    model = fill(ContentVTransformer(**SMALL))
    model(**arguments).square().mean().backward()
    exact = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = model(**arguments)
    out.float().square().mean().backward()
    near = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (near - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("hidden_states", (2, 16, 8, 12), "latents are [batch, channels, frames, height, width], not [2, 16, 8, 12]"),
        ("hidden_states", (2, 4, 3, 8, 12), "latents have 16 channels in this model, not 4"),
        ("hidden_states", (2, 16, 3, 7, 12), "latent height 7 is not a multiple of the patch size 2"),
        ("hidden_states", (2, 16, 0, 8, 12), "latents [2, 16, 0, 8, 12] are empty"),
        ("timestep", (), "timestep is [2] for latents [2, 16, 3, 8, 12], not []"),
        ("timestep", (1,), "timestep is [2] for latents [2, 16, 3, 8, 12], not [1]"),
        ("encoder_hidden_states", (2, 7, 25), "encoder_hidden_states is [2, tokens, 24] for latents"),
        ("encoder_hidden_states", (3, 7, 24), "encoder_hidden_states is [2, tokens, 24] for latents"),
        ("pooled_projections", (2, 7, 20), "pooled_projections is [2, 20] for latents"),
    ],
)
def test_a_wrong_shape_is_named(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError) as error:
        ContentVTransformer(**SMALL)(**inputs() | {name: torch.zeros(shape)})
    assert words in str(error.value)


def test_a_timestep_that_was_rounded_is_refused() -> None:
    arguments = inputs()
    with pytest.raises(ValueError, match=r"rounds 998.8 to 1000"):
        ContentVTransformer(**SMALL)(**arguments | {"timestep": arguments["timestep"].bfloat16()})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": 0}, "num_layers must be a whole number above zero"),
        ({"attention_head_dim": 12, "num_attention_heads": 3}, "must be a multiple of 16, not 36"),
        ({"position": "learned"}, 'position is "absolute" or "rotary"'),
        ({"attention_head_dim": 24, "num_attention_heads": 4, "position": "rotary"}, "multiple of 16, not 24"),
    ],
)
def test_a_size_that_cannot_be_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(read_config("tiny"), **change)  # type: ignore[arg-type]
