from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file

from models.adaptation import adapt
from models.checkpoint import CheckpointError, save_transformer
from models.position import Grid, absolute
from models.transformer import ContentVTransformer
from tests.models.weights import SMALL, fill, inputs

DIM = 64


@pytest.fixture
def image_model() -> SD3Transformer2DModel:
    stock = SD3Transformer2DModel(**SMALL, caption_projection_dim=DIM, qk_norm="rms_norm", pos_embed_max_size=8)
    positions = stock.pos_embed.pos_embed.clone()
    fill(stock)
    stock.pos_embed.pos_embed[:] = positions
    return stock


def single_file(prefix: str = "model.diffusion_model.") -> dict[str, torch.Tensor]:
    """Random weights in the layout of ``sd3.5_large.safetensors``, written out as its authors have them."""
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, 64, DIM), "x_embedder.proj.weight": (DIM, 16, 2, 2)}
    shapes["x_embedder.proj.bias"] = (DIM,)

    def linear(name: str, ins: int, outs: int) -> None:
        shapes[f"{name}.weight"] = (outs, ins)
        shapes[f"{name}.bias"] = (outs,)

    linear("t_embedder.mlp.0", 256, DIM)
    linear("t_embedder.mlp.2", DIM, DIM)
    linear("y_embedder.mlp.0", 20, DIM)
    linear("y_embedder.mlp.2", DIM, DIM)
    linear("context_embedder", 24, DIM)
    for block in range(3):
        for stream in ("x_block", "context_block"):
            name = f"joint_blocks.{block}.{stream}"
            ends = block == 2 and stream == "context_block"
            linear(f"{name}.attn.qkv", DIM, 3 * DIM)
            shapes[f"{name}.attn.ln_q.weight"] = shapes[f"{name}.attn.ln_k.weight"] = (16,)
            linear(f"{name}.adaLN_modulation.1", DIM, (2 if ends else 6) * DIM)
            if not ends:
                linear(f"{name}.attn.proj", DIM, DIM)
                linear(f"{name}.mlp.fc1", DIM, 4 * DIM)
                linear(f"{name}.mlp.fc2", 4 * DIM, DIM)
    linear("final_layer.linear", DIM, 64)
    linear("final_layer.adaLN_modulation.1", DIM, 2 * DIM)
    generator = torch.Generator().manual_seed(0)
    return {prefix + name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}


def test_every_weight_of_the_image_model_is_reused(tmp_path: Path, image_model: SD3Transformer2DModel) -> None:
    image_model.save_pretrained(tmp_path / "transformer", max_shard_size="100KB")
    model, report = adapt(tmp_path)
    state = image_model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert set(report.reused) == set(model.state_dict())
    assert report.dropped == ("pos_embed.pos_embed",)
    assert report.new == ()
    assert report.parameters_reused == sum(parameter.numel() for parameter in image_model.parameters())


def test_the_adapted_model_treats_an_image_as_the_image_model_does(
    tmp_path: Path, image_model: SD3Transformer2DModel
) -> None:
    """But for the position embedding, which is put into the image model here."""
    image_model.save_pretrained(tmp_path / "transformer")
    model, _ = adapt(tmp_path)
    image_model.pos_embed.pos_embed.view(8, 8, DIM)[2:6, 1:7] = absolute(Grid(1, 4, 6), DIM).view(4, 6, DIM)
    video = inputs(frames=1)
    with torch.no_grad():
        expected = image_model(**video | {"hidden_states": video["hidden_states"][:, :, 0]}).sample
        assert (model(**video)[:, :, 0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_the_single_file_becomes_what_diffusers_makes_of_it(tmp_path: Path, prefix: str) -> None:
    save_file(single_file(prefix), tmp_path / "sd3.5_large.safetensors")
    model, report = adapt(tmp_path / "sd3.5_large.safetensors")
    expected = convert_sd3_transformer_checkpoint_to_diffusers(single_file(prefix))
    expected.pop("pos_embed.pos_embed")
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
    assert model.config == ContentVTransformer(**SMALL).config
    assert report.dropped == (f"{prefix}pos_embed",)


def test_what_else_is_in_a_single_file_is_reported(tmp_path: Path) -> None:
    others = {f"text_encoders.clip_l.layers.{i}.weight": torch.zeros(1) for i in range(5)}
    others["first_stage_model.decoder.conv_in.weight"] = torch.zeros(1)
    save_file(single_file() | others, tmp_path / "bundle.safetensors")
    _, report = adapt(tmp_path / "bundle.safetensors")
    assert len(report.dropped) == 7
    assert str(report).splitlines() == [
        f"adapted from {tmp_path}/bundle.safetensors",
        f"  reused     106  {report.parameters_reused:,} parameters",
        "  dropped      7  first_stage_model.* (1), model.* (1), text_encoders.* (5)",
        "  new          0  0 parameters",
        "  position        3D absolute, computed: it has no weights",
    ]


def test_a_published_video_model_is_taken_as_it_is(tmp_path: Path) -> None:
    published = fill(ContentVTransformer(**SMALL))
    save_transformer(published, tmp_path / "transformer")
    model, report = adapt(tmp_path, dtype=torch.bfloat16)
    assert (report.dropped, report.new) == ((), ())
    assert torch.equal(model.proj_out.weight, published.proj_out.weight.bfloat16())


def test_rotary_positions_need_no_weights_either(tmp_path: Path, image_model: SD3Transformer2DModel) -> None:
    image_model.save_pretrained(tmp_path)
    model, report = adapt(tmp_path, position="rotary")
    assert model.config.position == "rotary"
    assert "3D rotary" in str(report)
    assert set(report.reused) == set(model.state_dict())


def test_latents_of_another_vae_get_new_layers_at_both_ends(tmp_path: Path, image_model: SD3Transformer2DModel) -> None:
    image_model.save_pretrained(tmp_path)
    model, report = adapt(tmp_path, latent_channels=48)
    ends = ("pos_embed.proj.weight", "pos_embed.proj.bias", "proj_out.weight", "proj_out.bias")
    assert (model.config.in_channels, model.config.out_channels) == (48, 48)
    assert report.new == ends
    assert set(report.dropped) == {"pos_embed.pos_embed", *ends}
    assert report.parameters_new == DIM * 48 * 4 + DIM + 4 * 48 * DIM + 4 * 48
    assert not model.proj_out.weight.any()
    video = inputs() | {"hidden_states": torch.randn(2, 48, 3, 8, 12)}
    assert model(**video).shape == (2, 48, 3, 8, 12)


def test_what_is_missing_in_a_single_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "sd3.5_large.safetensors"
    weights = single_file()
    del weights["model.diffusion_model.joint_blocks.1.x_block.attn.qkv.weight"]
    weights["model.diffusion_model.joint_blocks.1.x_block.attn.scale"] = torch.ones(1)
    save_file(weights, file)
    with pytest.raises(CheckpointError) as error:
        adapt(file)
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "3 missing: " + ", ".join(f"transformer_blocks.1.attn.to_{name}.weight" for name in "qkv"),
        "1 unexpected: joint_blocks.1.x_block.attn.scale",
    ]


def test_other_models_are_named(tmp_path: Path, image_model: SD3Transformer2DModel) -> None:
    image_model.save_pretrained(tmp_path / "diffusers")
    with pytest.raises(CheckpointError, match=r"is no SD3.5-Large in its authors' layout; it lacks x_embedder"):
        adapt(tmp_path / "diffusers/diffusion_pytorch_model.safetensors")
    weights = single_file()
    weights["model.diffusion_model.joint_blocks.0.x_block.attn2.qkv.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "medium.safetensors")
    with pytest.raises(CheckpointError, match=r"SD3.5-Medium, not SD3.5-Large"):
        adapt(tmp_path / "medium.safetensors")
    with pytest.raises(FileNotFoundError, match=r"weights are missing: .*nowhere.safetensors"):
        adapt(tmp_path / "nowhere.safetensors")


def test_a_part_of_a_fused_matrix_does_not_keep_the_rest_in_memory(tmp_path: Path) -> None:
    save_file(single_file(), tmp_path / "sd3.5_large.safetensors")
    model, _ = adapt(tmp_path / "sd3.5_large.safetensors")
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in model.state_dict().values())
