"""VideoCLIP-XL: videos and long descriptions in one space of 768 features (Wang et al., 2024).

The video tower is a ViT-L/14 over one joint sequence of space and time: a class token, then the patches of eight
frames. The text tower is CLIP's with 248 tokens instead of 77: the first 20 positions are CLIP's, the others were
trained anew. Names are those of the published checkpoint, ``VideoCLIP-XL.bin``. Its ``logit_scale`` and ``temp`` take
no part in a similarity, which is 100 times the cosine (NUMERICS 12).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.scoring.loading import build
from models.scoring.state_dict import read_state_dict

FRAMES = 8
CONTEXT = 248
MEAN = (0.485, 0.456, 0.406)  # ImageNet's, not CLIP's
STD = (0.229, 0.224, 0.225)
SCALE = 100.0

_KEPT_POSITIONS = 20  # of CLIP; the later ones come from ``positional_embedding_res``


@dataclass(frozen=True)
class VideoClipConfig:
    """The size of both towers; by default the published one's. ``end`` is the id of the end token."""

    embed_dim: int = 768
    image_size: int = 224
    patch: int = 14
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    frames: int = FRAMES
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    context: int = CONTEXT
    vocab: int = 49408
    start: int = 49406
    end: int = 49407


class VideoClipXL(nn.Module):
    """Both towers, with the keys of the published checkpoint."""

    def __init__(self, config: VideoClipConfig | None = None) -> None:
        super().__init__()
        self.config = config or VideoClipConfig()
        self.text_model = _TextTower(self.config)
        self.vision_model = _VisionModel(self.config)

    def video_features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, T, 3, S, S] of the configured frames, or of one -> features [B, 768], of any length."""
        tower = self.vision_model.vision_encoder
        return tower(pixels.to(tower.proj.device, tower.proj.dtype))

    def text_features(self, tokens: Tensor) -> Tensor:
        """Token ids [B, 248] -> features [B, 768], of any length."""
        return self.text_model(tokens.to(self.text_model.text_projection.device, torch.long))


def similarity(text: Tensor, video: Tensor) -> Tensor:
    """How well each text [N, D] describes each video [M, D]: 100 times the cosine, [N, M]."""
    exact = torch.promote_types(text.dtype, torch.float32)
    return SCALE * F.normalize(text.to(exact), dim=-1) @ F.normalize(video.to(exact), dim=-1).T


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """Token ids [B, 248] from CLIP's tokenizer, padded with 0; what is longer is cut, and ends with the end token."""
    rows = []
    for ids in tokenizer(texts, verbose=False).input_ids:
        kept = ids if len(ids) <= CONTEXT else [*ids[: CONTEXT - 1], ids[-1]]
        rows.append(kept + [0] * (CONTEXT - len(kept)))
    return torch.tensor(rows)


def frame_indices(total: int, frames: int = FRAMES) -> list[int]:
    """The published choice of frames: every (total // 8)th from the first, so the tail of a clip is not seen.

    Under eight frames, where the published program fails, frames are repeated evenly.
    """
    if total < 1:
        raise ValueError("a video has at least one frame")
    if total < frames:
        return [i * total // frames for i in range(frames)]
    return [i * (total // frames) for i in range(frames)]


def video_pixels(frames: np.ndarray, side: int = 224) -> Tensor:
    """RGB frames uint8 [T, H, W, 3] -> pixels float32 [T, 3, side, side]: squashed to a square without antialiasing.

    Raises:
        ValueError: these are no RGB frames of 8 bits.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames are uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    resized = np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_LINEAR) for frame in frames])
    pixels = (resized / 255.0 - np.array(MEAN)) / np.array(STD)  # in float64, as published
    return torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2).contiguous()


class _TextTower(nn.Module):
    """CLIP's text transformer: causal, pooled at the end token."""

    def __init__(self, config: VideoClipConfig) -> None:
        super().__init__()
        width = config.text_width
        self.end = config.end
        self.positional_embedding = nn.Parameter(torch.empty(config.context, width))
        self.positional_embedding_res = nn.Parameter(torch.empty(config.context, width))
        self.text_projection = nn.Parameter(torch.empty(width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.transformer = _Transformer(width, config.text_layers, config.text_heads)
        self.token_embedding = nn.Embedding(config.vocab, width)
        self.ln_final = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 2 or tokens.shape[1] != len(self.positional_embedding):
            raise ValueError(f"token ids are [B, {len(self.positional_embedding)}], not {list(tokens.shape)}")
        if not (tokens == self.end).any(1).all():
            raise ValueError("every text has an end token, and one of these has none")
        positions = [self.positional_embedding[:_KEPT_POSITIONS], self.positional_embedding_res[_KEPT_POSITIONS:]]
        x = self.token_embedding(tokens) + torch.cat(positions)
        x = self.ln_final(self.transformer(x, causal=True))
        return x[torch.arange(len(x), device=x.device), tokens.argmax(1)] @ self.text_projection


class _VisionModel(nn.Module):
    def __init__(self, config: VideoClipConfig) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.empty(()))
        self.vision_encoder = _VideoTower(config)


class _VideoTower(nn.Module):
    """A vision transformer over the patches of all frames at once."""

    def __init__(self, config: VideoClipConfig) -> None:
        super().__init__()
        width = config.vision_width
        tokens = 1 + (config.image_size // config.patch) ** 2
        self.side = config.image_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.temporal_positional_embedding = nn.Parameter(torch.empty(1, config.frames, width))
        self.proj = nn.Parameter(torch.empty(width, config.embed_dim))
        kernel = (1, config.patch, config.patch)
        self.conv1 = nn.Conv3d(3, width, kernel, kernel, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _Transformer(width, config.vision_layers, config.vision_heads)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        frames = self.temporal_positional_embedding.shape[1]
        if pixels.ndim != 5 or pixels.shape[1] not in (1, frames) or pixels.shape[2:] != (3, self.side, self.side):
            raise ValueError(
                f"pixels are [B, {frames} frames or 1, 3, {self.side}, {self.side}], not {list(pixels.shape)}"
            )
        patches = self.conv1(pixels.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)  # [B, T, patches, width]
        each = self.temporal_positional_embedding
        time = each.mean(1, keepdim=True) if pixels.shape[1] == 1 else each
        patches = patches + self.positional_embedding[1:] + time[:, :, None]
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(pixels), 1, -1)
        x = self.transformer(self.ln_pre(torch.cat([first, patches.flatten(1, 2)], dim=1)))
        return self.ln_post(x[:, 0]) @ self.proj


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        for block in self.resblocks:
            x = block(x, causal)
        return x


class _Block(nn.Module):
    """A pre-norm block of CLIP, with the sigmoid approximation of GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self._attend(self.ln_1(x), causal)
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))

    def _attend(self, x: Tensor, causal: bool) -> Tensor:
        fused = F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias)
        query, key, value = (
            part.unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2) for part in fused.chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.attn.out_proj(attended.transpose(1, 2).flatten(2))


def load_videoclip_xl(
    file: str | Path,
    *,
    config: VideoClipConfig | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> VideoClipXL:
    """The frozen network from the published ``VideoCLIP-XL.bin`` (read as weights only) or from safetensors.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or its keys or shapes are not the network's.
    """
    file = Path(file)
    state = read_state_dict(file)
    return build(lambda: VideoClipXL(config), state, str(file), dtype=dtype, device=device)
