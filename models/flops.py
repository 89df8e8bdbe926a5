"""What a transformer costs: tokens of a shape, parameters, and floating point operations in closed form.

A multiplication and an addition are two operations. Only matrix products count, as in PyTorch's FlopCounterMode, which
``forward_flops`` equals exactly. (6 * parameters * tokens, the rule for language models, is wrong here by a factor of
about 3: each token meets only the weights of its own stream, and attention is most of the work of a long video.)
"""

from dataclasses import dataclass

from models.blocks import FREQUENCIES, MLP_RATIO
from models.recompute import Recompute
from models.transformer import TransformerConfig

TEXT_TOKENS = 333  # CLIP's 77 and T5's 256


@dataclass(frozen=True)
class Flops:
    """Operations of one forward pass of one sample.

    Attributes:
        linear: the blocks' layers on tokens.
        attention: scores and weighted values, of all tokens with all.
        modulation: the blocks' shifts, scales and gates, once a sample.
        ends: embeddings of patches, text and time, and the last layer.
    """

    linear: int
    attention: int
    modulation: int
    ends: int

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.modulation + self.ends

    def training(self) -> int:
        """Operations of a forward pass, and of a backward pass that is twice as many."""
        return 3 * self.total


def parameters(config: TransformerConfig) -> int:
    """How many numbers a checkpoint of this size holds."""
    dim, layers = config.inner_dim, config.num_layers
    patch = config.patch_size**2
    attention = 4 * _linear(dim, dim) + 2 * config.attention_head_dim
    feed_forward = _linear(dim, MLP_RATIO * dim) + _linear(MLP_RATIO * dim, dim)
    stream = _linear(dim, 6 * dim) + attention + feed_forward
    # The last block's text only has to be attended to: it has no output layer, feed-forward, or modulation of them.
    unused = _linear(dim, dim) + feed_forward + _linear(dim, 6 * dim) - _linear(dim, 2 * dim)
    time_and_text = _linear(2 * FREQUENCIES, dim) + _linear(config.pooled_projection_dim, dim) + 2 * _linear(dim, dim)
    patches = _linear(patch * config.in_channels, dim) + _linear(dim, patch * config.out_channels)
    ends = patches + time_and_text + _linear(config.joint_attention_dim, dim) + _linear(dim, 2 * dim)
    return layers * 2 * stream - unused + ends


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def forward_flops(config: TransformerConfig, video_tokens: int, text_tokens: int = TEXT_TOKENS) -> Flops:
    """Operations of one sample. For a batch, multiply; a pass with and one without guidance are a batch of two."""
    dim = config.inner_dim
    blocks = [_block_flops(config, index, video_tokens, text_tokens) for index in (0, config.num_layers - 1)]
    linear, attention, modulation = ((config.num_layers - 1) * most + last for most, last in zip(*blocks, strict=True))
    on_tokens = video_tokens * config.patch_size**2 * (config.in_channels + config.out_channels)
    on_tokens += text_tokens * config.joint_attention_dim
    # time, text, their second layers, and the modulation of the output
    on_sample = 2 * FREQUENCIES + config.pooled_projection_dim + 2 * dim + 2 * dim
    return Flops(linear, attention, modulation, ends=2 * dim * (on_tokens + on_sample))


def recomputed_flops(
    config: TransformerConfig, recompute: Recompute, video_tokens: int, text_tokens: int = TEXT_TOKENS
) -> int:
    """Operations of one sample that a backward pass repeats of the forward pass, beside those of ``Flops.training``."""
    again = 0
    for index in range(config.num_layers):
        mode = recompute.mode_of(index)
        linear, attention, modulation = _block_flops(config, index, video_tokens, text_tokens)
        again += {"none": 0, "attention": linear + modulation, "full": linear + modulation + attention}[mode]
    return again


def _block_flops(config: TransformerConfig, index: int, video_tokens: int, text_tokens: int) -> tuple[int, int, int]:
    """Operations of a block's layers on tokens, of its attention and of its modulation."""
    dim, last = config.inner_dim, index == config.num_layers - 1
    each = 4 + 2 * MLP_RATIO
    # The last block's text is only attended to: it has query, key and value, shift and scale.
    linear = 2 * dim**2 * (each * video_tokens + (3 if last else each) * text_tokens)
    attention = 4 * (video_tokens + text_tokens) ** 2 * dim
    return linear, attention, 2 * dim**2 * (6 + (2 if last else 6))
