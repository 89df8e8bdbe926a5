"""SD3.5-Large becomes the video model (report, section 4): every weight is reused, the 2D position buffer is dropped.

The image model may lie in the layout of diffusers, or in the single file of its authors (``sd3.5_large.safetensors``),
which has other names, query, key and value in one matrix, and shift before scale where diffusers has scale first.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.blocks import PatchEmbedding
from models.checkpoint import CheckpointError, Stored, build, network_folder, read_config, stored_tensors
from models.position import Position
from models.transformer import ContentVTransformer, TransformerConfig, initialise

POSITION_KEY = "pos_embed.pos_embed"
PREFIX = "model.diffusion_model."

# Name in the single file, less ".weight" and ".bias" -> names in diffusers, each a part of the rows, in order.
OUTER_NAMES = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "context_embedder": ("context_embedder",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
BLOCK_NAMES = {
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}


@dataclass(frozen=True)
class AdaptationReport:
    """What became of the tensors of a checkpoint, by their names in it, and of the model's, by theirs.

    Attributes:
        reused: tensors of the model that came from the checkpoint.
        dropped: tensors of the checkpoint that the model has no use for.
        new: tensors of the model that start anew.
        parameters_reused, parameters_new: how many numbers they hold.
    """

    source: str
    position: Position
    reused: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]
    parameters_reused: int
    parameters_new: int

    def __str__(self) -> str:
        lines = (
            f"adapted from {self.source}",
            f"  reused   {len(self.reused):5}  {self.parameters_reused:,} parameters",
            f"  dropped  {len(self.dropped):5}  {_grouped(self.dropped)}",
            f"  new      {len(self.new):5}  {self.parameters_new:,} parameters  {_grouped(self.new)}",
            f"  position        3D {self.position}, computed: it has no weights",
        )
        return "\n".join(line.rstrip() for line in lines)


def adapt(
    source: str | Path,
    *,
    position: Position = "absolute",
    latent_channels: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> tuple[ContentVTransformer, AdaptationReport]:
    """The video transformer made of an image model, or of a published video model, and what of it was reused.

    Args:
        source: a folder in the layout of diffusers (SD3.5-Large or ContentV-8B; with or without ``transformer/``), or
            the single safetensors file of SD3.5-Large.
        latent_channels: for a VAE with other channels than the checkpoint's: first and last layer then start anew.
        dtype: of the weights in memory; by default as stored.

    Raises:
        FileNotFoundError: the checkpoint, or a part of it, is missing.
        CheckpointError: it is damaged, or another architecture, or lacks tensors; names them.
    """
    source = Path(source)
    if source.is_dir():
        stored = stored_tensors(network_folder(source))
        config = read_config(network_folder(source))
        named = dict(stored)
    else:
        stored = stored_tensors(source)
        named, config = translate(stored, str(source))
    config = replace(config, position=position)
    # The image model's 2D positions, up to their largest picture, are a buffer: computed, not learned.
    kept = {key: tensor for key, tensor in named.items() if key != POSITION_KEY}
    new: dict[str, Tensor] = {}
    if latent_channels not in (None, config.in_channels):
        config = replace(config, in_channels=latent_channels, out_channels=latent_channels)
        new = _fresh(config)
        kept = {key: tensor for key, tensor in kept.items() if key not in new}
    model = build(config, kept, f"checkpoint {source}", dtype=dtype, device=device, new=new)
    used = {tensor.key for tensor in kept.values()}
    report = AdaptationReport(
        source=str(source),
        position=position,
        reused=tuple(kept),
        dropped=tuple(key for key in stored if key not in used),
        new=tuple(new),
        parameters_reused=sum(math.prod(tensor.shape) for tensor in kept.values()),
        parameters_new=sum(tensor.numel() for tensor in new.values()),
    )
    return model, report


def translate(stored: Mapping[str, Stored], source: str) -> tuple[dict[str, Stored], TransformerConfig]:
    """The transformer in a single file: its tensors under the names and in the layout of diffusers, and its size.

    A VAE or text encoders in the same file are left out. Tensors of the transformer with unknown names keep them.

    Raises:
        CheckpointError: it is no SD3.5-Large; names what is missing.
    """
    prefix = PREFIX if any(key.startswith(PREFIX) for key in stored) else ""
    own = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    config = _config_of(own, source)
    last = config.num_layers - 1
    scale_first = {"final_layer.adaLN_modulation.1", f"joint_blocks.{last}.context_block.adaLN_modulation.1"}
    tensors: dict[str, Stored] = {}
    for key, tensor in own.items():
        name, _, kind = key.rpartition(".")
        targets = _names(name)
        if not targets:
            tensors[POSITION_KEY if key == "pos_embed" else key] = tensor
        elif len(targets) == 1:
            half = tensor.shape[0] // 2
            swapped = tensor.take(slice(half, 2 * half), slice(0, half)) if name in scale_first else tensor
            tensors[f"{targets[0]}.{kind}"] = swapped
        else:
            rows = tensor.shape[0] // len(targets)
            for part, target in enumerate(targets):
                tensors[f"{target}.{kind}"] = tensor.take(slice(part * rows, (part + 1) * rows))
    return tensors, config


def _names(name: str) -> tuple[str, ...]:
    """The names in diffusers of a layer of the single file; none for what is no layer of the transformer."""
    block = re.fullmatch(r"joint_blocks\.(\d+)\.(.+)", name)
    if block is None:
        return OUTER_NAMES.get(name, ())
    return tuple(f"transformer_blocks.{block[1]}.{part}" for part in BLOCK_NAMES.get(block[2], ()))


def _config_of(own: Mapping[str, Stored], source: str) -> TransformerConfig:
    """The size of the model, from the shapes of its tensors: a single file has no config."""
    needed = (
        "x_embedder.proj.weight",
        "context_embedder.weight",
        "y_embedder.mlp.0.weight",
        "final_layer.linear.weight",
        "joint_blocks.0.x_block.attn.ln_q.weight",
    )
    missing = [key for key in needed if key not in own]
    if missing:
        raise CheckpointError(f"{source} is no SD3.5-Large in its authors' layout; it lacks {', '.join(missing)}")
    if any(".attn2." in key for key in own):
        raise CheckpointError(f"{source} has blocks with a second attention (attn2): SD3.5-Medium, not SD3.5-Large")
    patches, text, pooled, out, head = (own[key].shape for key in needed)
    blocks = {int(match[1]) for key in own if (match := re.match(r"joint_blocks\.(\d+)\.", key))}
    return TransformerConfig(
        num_layers=max(blocks) + 1,
        num_attention_heads=patches[0] // head[0],
        attention_head_dim=head[0],
        in_channels=patches[1],
        out_channels=out[0] // patches[2] ** 2,
        patch_size=patches[2],
        joint_attention_dim=text[1],
        pooled_projection_dim=pooled[1],
    )


def _fresh(config: TransformerConfig) -> dict[str, Tensor]:
    """The layers next to the latents, initialised: the first and the last."""
    first = PatchEmbedding(config.in_channels, config.inner_dim, config.patch_size)
    last = nn.Linear(config.inner_dim, config.patch_size**2 * config.out_channels)
    layers = nn.ModuleDict({"pos_embed": first, "proj_out": last})
    initialise(layers)
    return layers.state_dict()


def _grouped(keys: Iterable[str]) -> str:
    """Up to three names; more are counted by the part of the name before the first dot."""
    keys = list(keys)
    if len(keys) <= 3:
        return ", ".join(keys)
    groups: dict[str, int] = {}
    for key in keys:
        group = key.split(".", 1)[0]
        groups[group] = groups.get(group, 0) + 1
    return ", ".join(f"{group}.* ({count})" for group, count in groups.items())
