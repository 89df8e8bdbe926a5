"""What a transformer costs: tokens of a shape, parameters, and floating point operations in closed form.

A multiplication and an addition are two operations. Only matrix products count, as in PyTorch's FlopCounterMode, which
``forward_flops`` equals exactly. (6 * parameters * tokens, the rule for language models, is wrong here by a factor of
about 3: each token meets only the weights of its own stream, and attention is most of the work of a long video.)
"""

from dataclasses import dataclass

from models.blocks import FREQUENCIES, MLP_RATIO
from models.codec import latent_shape
from models.position import Grid
from models.recompute import Mode
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

    @property
    def attention_share(self) -> float:
        return self.attention / self.total

    def training(self, recompute: Mode = "none") -> int:
        """Of a forward and a backward pass: three forward passes, and what the recomputation repeats of the blocks."""
        again = {"none": 0, "attention": self.linear + self.modulation}
        again["full"] = again["attention"] + self.attention
        return 3 * self.total + again[recompute]


def token_grid(frames: int, height: int, width: int, patch_size: int = 2) -> Grid:
    """The tokens along each axis of a video of so many frames and pixels.

    Raises:
        ValueError: frames are not 4k + 1, or a side is no multiple of 16; names the nearest.
    """
    t, h, w = latent_shape(frames, height, width, multiple=8 * patch_size)
    return Grid(t, h // patch_size, w // patch_size)


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
    """Of one sample. For a batch, multiply; a pass with and one without guidance are a batch of two."""
    dim, layers = config.inner_dim, config.num_layers
    patch = config.patch_size**2
    on_tokens = (
        video_tokens * patch * (config.in_channels + config.out_channels) + text_tokens * config.joint_attention_dim
    )
    on_sample = (
        2 * FREQUENCIES + config.pooled_projection_dim + 2 * dim + 2 * dim
    )  # time, text, second layers, norm_out
    return Flops(
        linear=2 * (4 + 2 * MLP_RATIO) * dim**2 * (video_tokens * layers + text_tokens * (layers - 1))
        + 2 * 3 * dim**2 * text_tokens,
        attention=4 * (video_tokens + text_tokens) ** 2 * dim * layers,
        modulation=2 * dim**2 * (12 * layers - 4),
        ends=2 * dim * (on_tokens + on_sample),
    )
