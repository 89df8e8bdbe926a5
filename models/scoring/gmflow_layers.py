"""The parts of GMFlow (Xu et al., CVPR 2022, arXiv 2111.13680): the convolutional encoder, and the transformer that
lets the features of two pictures see each other. Names of parameters are those of the published weights.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 128
FFN_EXPANSION = 4
MASKED = -100.0  # added to the scores of what shifted windows must not see: as published, so not infinite


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norm, beside the input itself or its 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(F.instance_norm(self.conv1(x)))
        y = F.relu(F.instance_norm(self.conv2(y)))
        return F.relu(y + (F.instance_norm(self.downsample(x)) if hasattr(self, "downsample") else x))


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] to features [B, 128, H/8, W/8]; with two scales, then also [B, 128, H/4, W/4].

    With two scales one convolution, at strides 2 and 1, makes both.
    """

    def __init__(self, num_scales: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.layer1 = nn.Sequential(ResidualBlock(64, 64, 1), ResidualBlock(64, 64, 1))
        self.layer2 = nn.Sequential(ResidualBlock(64, 96, 2), ResidualBlock(96, 96, 1))
        last = 2 if num_scales == 1 else 1
        self.layer3 = nn.Sequential(ResidualBlock(96, CHANNELS, last), ResidualBlock(CHANNELS, CHANNELS, 1))
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 1)
        if num_scales == 2:
            self.trident_conv = SharedConv()

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(F.instance_norm(self.conv1(x)))
        x = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        return [self.trident_conv(x, 2), self.trident_conv(x, 1)] if hasattr(self, "trident_conv") else [x]


class SharedConv(nn.Module):
    """A 3x3 convolution whose stride is said at the call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(CHANNELS, CHANNELS, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, stride: int) -> Tensor:
        return F.conv2d(x, self.weight, stride=stride, padding=1)


class Attention(nn.Module):
    """One-headed attention in windows, with a feed-forward network over what was found and what was there, or without.

    The message is normalised before it is added; there is no other norm.
    """

    def __init__(self, feed_forward: bool) -> None:
        super().__init__()
        self.q_proj = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.k_proj = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.v_proj = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.merge = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.norm1 = nn.LayerNorm(CHANNELS)
        if feed_forward:
            hidden = 2 * CHANNELS * FFN_EXPANSION
            self.mlp = nn.Sequential(
                nn.Linear(2 * CHANNELS, hidden, bias=False), nn.GELU(), nn.Linear(hidden, CHANNELS, bias=False)
            )
            self.norm2 = nn.LayerNorm(CHANNELS)

    def forward(self, source: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens [B, windows, tokens, 128] of ``source`` look at those of ``target`` in their window."""
        found = F.scaled_dot_product_attention(self.q_proj(source), self.k_proj(target), self.v_proj(target), mask)
        message = self.norm1(self.merge(found))
        if hasattr(self, "mlp"):
            message = self.norm2(self.mlp(torch.cat([source, message], -1)))
        return source + message


class Layer(nn.Module):
    """Attention of a picture to itself, then to the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention(feed_forward=False)
        self.cross_attn_ffn = Attention(feed_forward=True)

    def forward(self, source: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        return self.cross_attn_ffn(self.self_attn(source, source, mask), target, mask)


class FeatureTransformer(nn.Module):
    """Six layers over the features of both pictures, in ``splits`` x ``splits`` windows.

    Every second layer shifts them by half a window (Swin, Liu et al. 2021).
    """

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, first: Tensor, second: Tensor, splits: int) -> tuple[Tensor, Tensor]:
        """Features [B, 128, h, w] of two pictures, h and w multiples of ``splits``, to features of the same shapes."""
        height, width = first.shape[2:]
        shift = height // splits // 2, width // splits // 2
        mask = shift_mask(height, width, splits, first)
        both = torch.cat([first, second]).permute(0, 2, 3, 1)
        for number, layer in enumerate(self.layers):
            moved = number % 2 == 1
            here = both.roll((-shift[0], -shift[1]), (1, 2)) if moved else both
            source = windows(here, splits)
            target = torch.cat(source.chunk(2)[::-1])
            both = unwindowed(layer(source, target, mask if moved else None), splits, height, width)
            both = both.roll(shift, (1, 2)) if moved else both
        first, second = both.permute(0, 3, 1, 2).chunk(2)
        return first, second


def windows(x: Tensor, splits: int) -> Tensor:
    """[B, h, w, C] to [B, splits * splits, h/splits * w/splits, C]."""
    rows = x.unflatten(1, (splits, -1)).unflatten(3, (splits, -1))  # [B, splits, h/splits, splits, w/splits, C]
    return rows.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def unwindowed(x: Tensor, splits: int, height: int, width: int) -> Tensor:
    """What ``windows`` has taken apart, [B, h, w, C] again."""
    parts = x.unflatten(1, (splits, splits)).unflatten(3, (height // splits, width // splits))
    return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def shift_mask(height: int, width: int, splits: int, like: Tensor) -> Tensor:
    """What is added to scores in shifted windows [splits * splits, tokens, tokens].

    It hides what has come round the edge of the picture from what was there.
    """
    region = 3 * _regions(height, splits, like.device)[:, None] + _regions(width, splits, like.device)
    of = windows(region[None, :, :, None], splits)[0, :, :, 0]
    apart = of[:, :, None] != of[:, None, :]
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, MASKED)


def _regions(length: int, splits: int, device: torch.device) -> Tensor:
    """0 for all windows but the last, 1 for its first part, 2 for what the shift has brought there [length]."""
    window = length // splits
    places = torch.arange(length, device=device)
    return (places >= length - window).long() + (places >= length - window // 2).long()
