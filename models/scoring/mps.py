"""MPS, the multi-dimensional preference score: how much people prefer a picture, given its prompt (Zhang et al., 2024).

It is the report's reward (section 6.2). CLIP-H gives tokens of the picture and of the prompt; a condition, which names
what a judgement is about, picks the words of the prompt that matter; the cross model lets the picture look at those.
The score is CLIP's: the cosine of the prompt's end token and the picture's class token, times CLIP's scale.

Two things differ from the published program, and are what it computes for one picture at a time: words are picked by
their similarity against the largest of **their own prompt**, where it takes the largest of the batch and so couples the
samples; and the threshold is the 0.3 of its evaluation scripts, not the 0.01 of its training (NUMERICS 5, 5b).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.scoring.clip_pixels import clip_pixels
from models.scoring.loading import build, read_safetensors
from models.scoring.mps_cross import CrossModel

TOKENS = 77
THRESHOLD = 0.3  # a word stays if its similarity is more than this share of the prompt's largest
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
WEIGHTS = "model.safetensors"
CONFIG = "config.json"

_END = 49407
_CLIP_H: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": TOKENS,
        "hidden_act": "gelu",
        "bos_token_id": 49406,
        "eos_token_id": _END,
        "pad_token_id": _END,
        "projection_dim": 1024,
    },
    "vision_config": {
        "image_size": 224,
        "patch_size": 14,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
}


@dataclass(frozen=True)
class CrossSize:
    """The size of the cross model."""

    dim: int = 1024
    layers: int = 4
    heads: int = 16
    dim_head: int = 64
    ff_mult: int = 4


@dataclass(frozen=True)
class MPSConfig:
    """The size of MPS: CLIP's, in the words of transformers' ``CLIPConfig``, and the cross model's."""

    clip: dict[str, Any]
    cross: CrossSize


PUBLISHED = MPSConfig(_CLIP_H, CrossSize())


class MPS(nn.Module):
    """CLIP (``model``) and the cross model (``cross_model``), with the keys of the published module."""

    def __init__(self, config: MPSConfig = PUBLISHED) -> None:
        from transformers import CLIPConfig, CLIPModel  # takes seconds, which every process would pay

        super().__init__()
        self.config = config
        self.model: Any = CLIPModel(CLIPConfig(**config.clip))
        self.cross_model = CrossModel(**asdict(config.cross))

    def score(self, images: Tensor, prompt_ids: Tensor, condition_ids: Tensor) -> Tensor:
        """The preference for each picture given its prompt, [B]: about -10 to 20 with the published weights.

        It is differentiable in the images, and a sample's score does not depend on the others of its batch.

        Args:
            images: RGB float [B, 3, H, W] in [0, 1], of any size (see ``clip_pixels``).
            prompt_ids: the prompts' tokens [B, 77], padded to the end as CLIP's tokenizer does.
            condition_ids: the tokens of the condition, [1, 77] for all samples or [B, 77].

        Returns:
            The scores, float32 where the weights are of less precision, else in the weights' dtype.

        Raises:
            ValueError: shapes do not go together, images are not in [0, 1], or a prompt has no end token.
        """
        batch = images.shape[0]
        if prompt_ids.shape[0] != batch or condition_ids.shape[0] not in (1, batch):
            raise ValueError(
                f"{batch} images want as many prompts, not {prompt_ids.shape[0]}, and one condition or as many, not "
                f"{condition_ids.shape[0]}"
            )
        words, prompt = self._text(prompt_ids)
        condition, _ = self._text(condition_ids)
        kept = torch.where(kept_words(words, condition), 0.0, -torch.inf)[:, None]
        picture = self.cross_model(self._image_tokens(images), words, kept)[:, 0]
        exact = torch.promote_types(picture.dtype, torch.float32)
        cosine = F.cosine_similarity(prompt.to(exact), picture.to(exact), dim=-1)
        return self.model.logit_scale.to(exact).exp() * cosine

    def _text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Projected tokens [B, 77, dim] and the projected end token [B, dim]. Padding takes part, as published."""
        weight = self.model.text_projection.weight
        ids = ids.to(weight.device, torch.long)
        if not (ids == self.model.config.text_config.eos_token_id).any(1).all():
            raise ValueError("every prompt and condition ends with CLIP's end token, and one of these has none")
        output = self.model.text_model(input_ids=ids)
        return self.model.text_projection(output.last_hidden_state), self.model.text_projection(output.pooler_output)

    def _image_tokens(self, images: Tensor) -> Tensor:
        """The class token and the patches, projected [B, 1 + patches, dim], without CLIP's last normalisation."""
        weight = self.model.visual_projection.weight
        pixels = clip_pixels(images.to(weight.device), self.model.config.vision_config.image_size).to(weight.dtype)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).last_hidden_state)


def kept_words(words: Tensor, condition: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Which of a prompt's tokens [B, 77, dim] matter for the condition's [1 or B, 77, dim]: bool [B, 77].

    A token is as similar as its largest product with a token of the condition, and stays if that is more than
    ``threshold`` of the prompt's largest. The start token is the same in both texts, so that one always stays.
    """
    exact = torch.promote_types(words.dtype, torch.float32)
    with torch.no_grad():
        similar = (words.to(exact) @ condition.to(exact).transpose(1, 2)).amax(2)
        return similar / similar.amax(1, keepdim=True) > threshold


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """The token ids [B, 77] that ``score`` takes, from CLIP-H's tokenizer; what is longer is cut at its end."""
    return tokenizer(texts, max_length=TOKENS, padding="max_length", truncation=True, return_tensors="pt").input_ids


def load_mps(folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> MPS:
    """The frozen network in a folder that ``convert_mps`` wrote: config.json and model.safetensors.

    Args:
        dtype: of the weights in memory; by default as stored.

    Raises:
        FileNotFoundError: a file is missing; it is named, with the command that makes it.
        CheckpointError: the file is damaged, or its keys or shapes are not those of config.json.
    """
    folder = Path(folder)
    missing = [str(folder / name) for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"MPS is not complete; missing: {', '.join(missing)}. Make the folder of the published file once: "
            f"convert-mps MPS_overall_checkpoint.pth {folder}"
        )
    config = read_config(folder / CONFIG)
    state = read_safetensors(folder / WEIGHTS)
    return build(lambda: MPS(config), state, str(folder / WEIGHTS), dtype=dtype, device=device)


def read_config(file: Path) -> MPSConfig:
    """The size in a file that ``write_config`` wrote."""
    values = json.loads(file.read_text())
    return MPSConfig(values["clip"], CrossSize(**values["cross"]))


def write_config(config: MPSConfig, file: Path) -> None:
    """Write ``config.json`` beside the weights."""
    file.write_text(json.dumps(asdict(config), indent=2) + "\n")
