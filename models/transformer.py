"""The ContentV transformer: SD3.5-Large's blocks over the tokens of a video (report, section 4).

The sign is SD3's: for ``x = (1 - sigma) * data + sigma * noise`` and timestep 1000 sigma, it predicts noise - data.

There is no parallelism in here. All between ``patchify`` and ``unpatchify`` treats each token by itself, except for
attention; so ``forward_tokens`` also runs on a shard of the sequence, with an attention that exchanges between shards.
"""

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.attention import Attention, kernel
from models.autograd import modulate
from models.blocks import ConditionEmbedding, JointAttention, JointBlock, Modulation, PatchEmbedding
from models.position import Grid, Position, add_absolute, check_divides, rotary
from models.recompute import Recompute


@dataclass(frozen=True)
class TransformerConfig:
    """The size of a transformer; the defaults are the 8B model (report, Table 1).

    Attributes:
        joint_attention_dim: the width of the text tokens.
        pooled_projection_dim: the width of the pooled text.
        position: "absolute" is the published model; "rotary" is the report's ablation.
    """

    num_layers: int = 38
    num_attention_heads: int = 38
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 2048
    position: Position = "absolute"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "position" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number above zero, not {value!r}")
        check_divides(self.position, self.inner_dim, self.attention_head_dim)

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


class ContentVTransformer(nn.Module):
    """Velocity of a noisy video, given its text. Takes the fields of ``TransformerConfig``.

    Attributes:
        config: the TransformerConfig.
        recompute: which blocks run again in the backward pass; assign a ``Recompute``.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = c = TransformerConfig(**config)
        self.recompute = Recompute()
        self.pos_embed = PatchEmbedding(c.in_channels, c.inner_dim, c.patch_size)
        self.time_text_embed = ConditionEmbedding(c.pooled_projection_dim, c.inner_dim)
        self.context_embedder = nn.Linear(c.joint_attention_dim, c.inner_dim)
        self.transformer_blocks = nn.ModuleList(
            JointBlock(c.num_attention_heads, c.attention_head_dim, last=index == c.num_layers - 1)
            for index in range(c.num_layers)
        )
        self.norm_out = Modulation(c.inner_dim, 2)
        self.proj_out = nn.Linear(c.inner_dim, c.patch_size**2 * c.out_channels)
        initialise(self)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor, timestep: Tensor
    ) -> Tensor:
        """The predicted noise - data.

        Args:
            hidden_states: noisy latents [B, 16, T, H, W]; an image has T = 1.
            encoder_hidden_states: text tokens [B, S, 4096].
            pooled_projections: pooled text [B, 2048].
            timestep: 1000 * sigma, float32 [B].

        Returns:
            [B, 16, T, H, W], in the dtype of the weights.

        Raises:
            ValueError: a shape does not fit, or the timestep is of half precision.
        """
        check_inputs(self.config, hidden_states, encoder_hidden_states, pooled_projections, timestep)
        grid = token_grid(hidden_states, self.config.patch_size)
        patches = patchify(hidden_states, self.config.patch_size)
        patches = self.forward_tokens(patches, encoder_hidden_states, pooled_projections, timestep, grid)
        return unpatchify(patches, grid, self.config.patch_size)

    def forward_tokens(
        self,
        patches: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        grid: Grid,
        indices: Tensor | None = None,
    ) -> Tensor:
        """``forward`` between ``patchify`` and ``unpatchify``, of all tokens or of a shard of them.

        Args:
            patches: [B, n, C p p], channels in the order (c p q).
            encoder_hidden_states: text tokens [B, s, 4096], all or a shard.
            grid: the tokens of the whole video.
            indices: int64 [n], which tokens of the grid these are in the order (t h w); by default all.

        Returns:
            [B, n, p p C], channels in the order (p q c).
        """
        video = self.pos_embed(patches)
        rotation = None
        if self.config.position == "absolute":
            add_absolute(video, grid, indices)
        else:
            rotation = rotary(grid, self.config.attention_head_dim, indices, video.device)
        text = self.context_embedder(encoder_hidden_states.to(self.context_embedder.weight.dtype))
        condition = self.time_text_embed(timestep, pooled_projections)
        for index, block in enumerate(self.transformer_blocks):
            video, text = self.recompute.run(index, block, video, text, condition, rotation)
        scale, shift = self.norm_out(condition)
        return self.proj_out(modulate(video, shift, scale))


def set_attention(model: nn.Module, attention: str | Attention) -> None:
    """Have every block of the model attend through the named kernel ("sdpa", "npu") or the given function.

    Raises:
        ValueError: no kernel has that name.
        RuntimeError: this machine cannot run it.
    """
    attend = kernel(attention) if isinstance(attention, str) else attention
    for block in model.modules():
        if isinstance(block, JointAttention):
            block.attend = attend


def attention_of(model: ContentVTransformer) -> Attention:
    """What the blocks of the model attend through, which is the same for all."""
    attention: Attention = cast(JointBlock, model.transformer_blocks[0]).attn.attend
    return attention


def initialise(model: nn.Module) -> None:
    """Weights to train from nothing, as in DiT (arXiv 2212.09748): each block starts as identity, the model as zero.

    A model made on the meta device wants it again after ``to_empty``.
    """
    for name, module in model.named_modules():
        initialise_layer(name, module)


def initialise_layer(name: str, layer: nn.Module) -> None:
    """``initialise`` of the model's layer of this name alone; a module of several layers stays as it is."""
    if isinstance(layer, nn.RMSNorm):
        layer.reset_parameters()
    elif isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            nn.init.zeros_(layer.weight)
        elif name.startswith("time_text_embed"):
            nn.init.normal_(layer.weight, std=0.02)
        else:
            nn.init.xavier_uniform_(layer.weight.flatten(1))


def token_grid(latents: Tensor, patch_size: int) -> Grid:
    """The tokens of latents [B, C, T, H, W] along each axis."""
    frames, height, width = latents.shape[2:]
    return Grid(frames, height // patch_size, width // patch_size)


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """[B, C, T, H, W] -> [B, tokens (t h w), C p p in the order (c p q)]."""
    _, h, w = token_grid(latents, patch_size)
    patches = latents.unflatten(4, (w, patch_size)).unflatten(3, (h, patch_size))  # b c t h p w q
    return patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def unpatchify(patches: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """[B, tokens (t h w), p p C in the order (p q c)] -> [B, C, T, H, W]."""
    parts = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, grid)  # b t h w p q c
    sides = grid.height * patch_size, grid.width * patch_size
    return parts.permute(0, 6, 1, 2, 4, 3, 5).reshape(len(patches), -1, grid.frames, *sides)


def check_inputs(
    config: TransformerConfig,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    timestep: Tensor,
) -> None:
    """ValueError, saying what it should be, for an input that does not fit the model or the other inputs."""
    shape = list(hidden_states.shape)
    if hidden_states.ndim != 5:
        raise ValueError(f"latents are [batch, channels, frames, height, width], not {shape}; an image has 1 frame")
    if shape[1] != config.in_channels:
        raise ValueError(f"latents have {config.in_channels} channels in this model, not {shape[1]} as in {shape}")
    for side, length in zip(("height", "width"), shape[3:], strict=True):
        if length % config.patch_size or not length:
            raise ValueError(f"latent {side} {length} is not a multiple of the patch size {config.patch_size}")
    if not shape[0] or not shape[2]:
        raise ValueError(f"latents {shape} are empty")
    expected: tuple[tuple[str, Tensor, list[int | str]], ...] = (
        ("encoder_hidden_states", encoder_hidden_states, [shape[0], "tokens", config.joint_attention_dim]),
        ("pooled_projections", pooled_projections, [shape[0], config.pooled_projection_dim]),
        ("timestep", timestep, [shape[0]]),
    )
    for name, tensor, wanted in expected:
        sizes = list(tensor.shape)
        if len(sizes) != len(wanted) or any(a != b for a, b in zip(sizes, wanted, strict=True) if b != "tokens"):
            text = ", ".join(map(str, wanted))
            raise ValueError(f"{name} is [{text}] for latents {shape}, not {sizes}")
    if timestep.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"timestep is {timestep.dtype}, which rounds 998.8 to 1000; give float32 "
            "(under FSDP2, MixedPrecisionPolicy(cast_forward_inputs=False))"
        )
