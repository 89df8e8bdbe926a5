"""The image tower of CLIP ViT-L/14 as OpenAI trained it, by open_clip: one pass a picture gives the unit vector that
finds duplicates and that the LAION head rates (aesthetic.py).

OpenAI's weights were trained with QuickGELU. open_clip's config ``ViT-L-14`` has exact GELU, loads them all the same,
and gives other vectors without a word; so a tower with another activation is refused.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import CheckpointError, check_keys
from models.scoring.clip_pixels import CLIP_MEAN, CLIP_STD
from models.scoring.state_dict import read_state_dict

ARCHITECTURE = "ViT-L-14-quickgelu"
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOWER = "visual."


class ClipImages:
    """A frozen image tower with its preprocessing.

    Attributes:
        side: of the pictures that it takes, pixels: 224.
        width: of the vectors that it gives: 768.
    """

    def __init__(
        self, tower: nn.Module, side: int, width: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.tower, self.side, self.width = tower, side, width
        self._mean, self._std = mean, std

    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        """RGB uint8 [H, W, 3] to uint8 [3, side, side]: the shorter side scaled bicubically, the middle cut out. For
        threads: nothing of it is on the device."""
        return torch.from_numpy(middle_of(image, self.side)).permute(2, 0, 1)

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """Unit vectors float32 [B, width] of pictures uint8 [B, 3, side, side]; zeros where the tower gives zeros.

        ValueError: they are not what ``prepare`` makes, stacked.
        """
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (3, self.side, self.side):
            raise ValueError(
                f"pictures are uint8 [B, 3, {self.side}, {self.side}], not {pixels.dtype} {list(pixels.shape)}"
            )
        weight = next(self.tower.parameters())
        x = pixels.to(weight.device).float() / 255
        mean, std = (torch.tensor(values, device=x.device).view(3, 1, 1) for values in (self._mean, self._std))
        return F.normalize(self.tower(((x - mean) / std).to(weight.dtype)).float(), dim=-1)


def middle_of(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle [side, side, 3] of an RGB picture whose shorter side is scaled to ``side``: as CLIP's preprocessing,
    to the bit."""
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    scaled = (side, int(side * long / short)) if width <= height else (int(side * long / short), side)
    resized = Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in resized.size)
    return np.array(resized.crop((left, top, left + side, top + side)), np.uint8)


def load_clip(
    source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ClipImages:
    """The image tower of a folder in open_clip's layout, or of a file of weights of ``ViT-L-14-quickgelu``.

    Such a folder has ``open_clip_config.json`` and weights. Nothing is fetched; the text tower's weights are checked
    and not kept.

    Args:
        dtype: of the weights. Vectors are float32 always.

    Raises:
        FileNotFoundError: config or weights are missing.
        CheckpointError: the config is of another kind of network, its activation is not QuickGELU, or keys or shapes of
            the weights are not the config's.
    """
    import open_clip  # takes seconds

    source = Path(source)
    config, preprocessing = _config_of(source)
    file = _weights_of(source)
    where = str(source / CONFIG) if source.is_dir() else f"the config of {source}"
    if config.get("custom_text") or "timm_model_name" in config["vision_cfg"] or not _is_vit(config):
        raise CheckpointError(f"{where} is not of a CLIP with a ViT of its own, such as {ARCHITECTURE}")
    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    check_activation(model.visual, where)
    state = read_state_dict(file)
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    check_keys({key: tuple(tensor.shape) for key, tensor in state.items()}, wanted, str(file))
    tower = {key.removeprefix(TOWER): tensor for key, tensor in state.items() if key.startswith(TOWER)}
    model.visual.load_state_dict({key: tensor.to(dtype) for key, tensor in tower.items()}, assign=True)
    side = model.visual.image_size
    return ClipImages(
        model.visual.to(device).eval().requires_grad_(False),
        side[0] if isinstance(side, tuple) else side,
        config["embed_dim"],
        tuple(preprocessing.get("mean", CLIP_MEAN)),
        tuple(preprocessing.get("std", CLIP_STD)),
    )


def clip_side(source: str | Path) -> int:
    """The side of the pictures that a CLIP takes, by its config alone: threads prepare them before it is loaded."""
    config, _ = _config_of(Path(source))
    return int(config["vision_cfg"]["image_size"])


def check_activation(tower: nn.Module, where: str) -> None:
    """CheckpointError unless every block of an image tower has QuickGELU."""
    names = {type(block.mlp[1]).__name__ for block in tower.transformer.resblocks}  # type: ignore[union-attr]
    if names != {"QuickGELU"}:
        raise CheckpointError(
            f"{where} makes an image tower with {' and '.join(sorted(names))}. OpenAI's weights were trained with "
            f"QuickGELU, and give other vectors with anything else: take {ARCHITECTURE}, or set quick_gelu to true"
        )


def _is_vit(config: dict[str, Any]) -> bool:
    return isinstance(config["vision_cfg"].get("layers"), int)


def _config_of(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of model and preprocessing: of a folder its own, of a file that of ``ViT-L-14-quickgelu``."""
    import open_clip

    if not source.is_dir():
        return dict(open_clip.get_model_config(ARCHITECTURE)), {}
    file = source / CONFIG
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: {source} should be in open_clip's layout, with it and {WEIGHTS[0]}"
        )
    found = json.loads(file.read_text())
    config = found.get("model_cfg", {})
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise CheckpointError(f"{file} has no model_cfg with embed_dim, vision_cfg and text_cfg")
    preprocessing = found.get("preprocess_cfg", {})
    usual = {"interpolation": "bicubic", "resize_mode": "shortest"}
    for name, value in usual.items():
        if preprocessing.get(name, value) != value:
            raise CheckpointError(f"{file}: {name} is {preprocessing[name]}, and {value} where CLIP was trained")
    return config, preprocessing


def _weights_of(source: Path) -> Path:
    if not source.is_dir():
        return source
    there = [source / name for name in WEIGHTS if (source / name).is_file()]
    if not there:
        raise FileNotFoundError(f"no weights in {source}: neither {' nor '.join(WEIGHTS)}")
    return there[0]
