import json
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from models.checkpoint import CheckpointError, load_transformer, read_config, save_transformer
from models.transformer import ContentVTransformer, TransformerConfig
from tests.models.weights import SMALL, fill


@pytest.fixture
def model() -> ContentVTransformer:
    return fill(ContentVTransformer(**SMALL))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
def test_what_is_saved_is_loaded(tmp_path: Path, model: ContentVTransformer, max_shard_bytes: int) -> None:
    save_transformer(model, tmp_path / "transformer", max_shard_bytes=max_shard_bytes)
    for folder in (tmp_path, tmp_path / "transformer"):
        loaded = load_transformer(folder)
        assert same(loaded, model)
        assert loaded.config == model.config
        assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_shards_are_named_and_indexed_as_diffusers_does(tmp_path: Path, model: ContentVTransformer) -> None:
    save_transformer(model, tmp_path / "transformer", max_shard_bytes=100_000)
    index = json.loads((tmp_path / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert list(index["weight_map"]) == list(model.state_dict())
    assert shards[0] == f"diffusion_pytorch_model-00001-of-{len(shards):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    for shard in shards:
        weights = load_file(tmp_path / "transformer" / shard)
        assert sum(t.nbytes for t in weights.values()) <= 100_000 or len(weights) == 1


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
def test_diffusers_opens_it_and_misses_only_its_2d_positions(
    tmp_path: Path, model: ContentVTransformer, max_shard_bytes: int
) -> None:
    save_transformer(model, tmp_path / "transformer", max_shard_bytes=max_shard_bytes)
    stock, info = SD3Transformer2DModel.from_pretrained(
        tmp_path, subfolder="transformer", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert info == {
        "missing_keys": ["pos_embed.pos_embed"],
        "unexpected_keys": [],
        "mismatched_keys": [],
        "error_msgs": [],
    }
    state = stock.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def test_a_folder_that_diffusers_wrote_is_loaded(tmp_path: Path, model: ContentVTransformer) -> None:
    stock = SD3Transformer2DModel(**SMALL, caption_projection_dim=64, qk_norm="rms_norm", pos_embed_max_size=8)
    stock.load_state_dict(model.state_dict(), strict=False)
    stock.pos_embed.register_buffer("pos_embed", None)  # as ContentV-8B is published
    stock.save_pretrained(tmp_path / "transformer", max_shard_size="200KB")
    assert same(load_transformer(tmp_path), model)


def test_weights_change_their_dtype_on_the_way(tmp_path: Path, model: ContentVTransformer) -> None:
    save_transformer(model, tmp_path / "half", dtype=torch.bfloat16)
    assert load_transformer(tmp_path / "half").proj_out.weight.dtype == torch.bfloat16
    loaded = load_transformer(tmp_path / "half", dtype=torch.float32)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.proj_out.weight, model.proj_out.weight.bfloat16().float())


def test_rotary_positions_are_remembered(tmp_path: Path) -> None:
    model = fill(ContentVTransformer(**SMALL, position="rotary"))
    save_transformer(model, tmp_path / "transformer")
    assert load_transformer(tmp_path).config.position == "rotary"


def test_an_average_of_the_weights_can_be_saved_instead(tmp_path: Path, model: ContentVTransformer) -> None:
    average = {key: torch.full_like(tensor, 0.5) for key, tensor in model.state_dict().items()}
    save_transformer(model, tmp_path / "average", state=average)
    assert load_transformer(tmp_path / "average").proj_out.weight.eq(0.5).all()
    del average["proj_out.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: proj_out.bias"):
        save_transformer(model, tmp_path / "other", state=average)


def test_a_checkpoint_is_whole_or_not_there_and_never_overwritten(tmp_path: Path, model: ContentVTransformer) -> None:
    with torch.device("meta"):
        nothing = ContentVTransformer(**SMALL)
    with pytest.raises(NotImplementedError):
        save_transformer(nothing, tmp_path / "transformer")
    assert not list(tmp_path.iterdir())
    save_transformer(model, tmp_path / "transformer")
    with pytest.raises(FileExistsError, match="never overwritten"):
        save_transformer(model, tmp_path / "transformer")
    assert [path.name for path in tmp_path.iterdir()] == ["transformer"]


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file) | {key: tensor for key, tensor in tensors.items() if tensor is not None}
    save_file({key: tensor for key, tensor in weights.items() if tensors.get(key, tensor) is not None}, file)


def test_keys_that_do_not_fit_are_named_and_counted(tmp_path: Path, model: ContentVTransformer) -> None:
    save_transformer(model, tmp_path / "transformer")
    lost = {f"transformer_blocks.0.attn.to_{name}.bias": None for name in ("q", "k", "v")}
    change(
        tmp_path / "transformer",
        **lost,
        **{
            "transformer_blocks.1.attn.to_q.bias": None,
            "extra.weight": torch.zeros(1),
            "proj_out.bias": torch.zeros(9),
        },
    )
    with pytest.raises(CheckpointError) as error:
        load_transformer(tmp_path)
    assert str(error.value).splitlines()[1:] == [
        "  4 missing: transformer_blocks.0.attn.to_q.bias, transformer_blocks.0.attn.to_k.bias, "
        "transformer_blocks.0.attn.to_v.bias and 1 more",
        "  1 unexpected: extra.weight",
        "  1 of another shape: proj_out.bias is [9], the model's [64]",
    ]


def test_missing_and_damaged_files_are_named(tmp_path: Path, model: ContentVTransformer) -> None:
    with pytest.raises(FileNotFoundError, match=r"no transformer config at .*; sizes known by name: 8b, tiny"):
        load_transformer(tmp_path / "nowhere")
    save_transformer(model, tmp_path / "one")
    file = tmp_path / "one/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.safetensors is cut off"):
        load_transformer(tmp_path / "one")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(
        FileNotFoundError, match=r"which has config.json, diffusion_pytorch_model.bin. Only safetensors"
    ):
        load_transformer(tmp_path / "one")
    save_transformer(model, tmp_path / "many", max_shard_bytes=200_000)
    shard = min((tmp_path / "many").glob("*-00002-*"))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"weights are missing: .*{shard.name}"):
        load_transformer(tmp_path / "many")


def test_another_architecture_is_named(tmp_path: Path, model: ContentVTransformer) -> None:
    save_transformer(model, tmp_path / "transformer")
    config = tmp_path / "transformer/config.json"
    values = json.loads(config.read_text())
    for name, value in {"qk_norm": None, "dual_attention_layers": [0, 1], "caption_projection_dim": 32}.items():
        config.write_text(json.dumps(values | {name: value}))
        with pytest.raises(CheckpointError, match=f"{name} is .* in SD3.5-Large and ContentV"):
            load_transformer(tmp_path)


def test_the_sizes_that_have_names() -> None:
    assert read_config("8b") == TransformerConfig()
    tiny = read_config("tiny")
    assert (tiny.num_layers, tiny.inner_dim, tiny.joint_attention_dim) == (4, 128, 4096)
