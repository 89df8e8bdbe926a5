"""Tiny random checkpoints of the networks that judge, on disk in the layouts in which the real ones are published."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from models.scoring.aesthetic import LaionHead
from models.scoring.gmflow import GMFlow
from tests.models.weights import fill

CLIP_WIDTH, CLIP_SIDE = 24, 56


def clip_config(quick_gelu: bool | None = True) -> dict[str, Any]:
    """A CLIP as open_clip's config describes ViT-L/14, with 2 layers of width 32; None leaves the activation unsaid."""
    config: dict[str, Any] = {
        "embed_dim": CLIP_WIDTH,
        "vision_cfg": {"image_size": CLIP_SIDE, "layers": 2, "width": 32, "patch_size": 14, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    return config if quick_gelu is None else config | {"quick_gelu": quick_gelu}


def write_clip(folder: Path, *, quick_gelu: bool | None = True, safetensors: bool = True) -> nn.Module:
    """Write open_clip's folder; returns the model whose weights it has."""
    import open_clip

    config = clip_config(quick_gelu)
    model = fill(open_clip.CLIP(**json.loads(json.dumps(config)))).eval()
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}))
    if safetensors:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    else:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model


def write_laion_head(file: Path, width: int = CLIP_WIDTH) -> LaionHead:
    """Write the head as it is published: a state dict of torch.save."""
    head = fill(LaionHead(width)).eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(head.state_dict(), file)
    return head


def write_gmflow(file: Path, scales: int = 1) -> GMFlow:
    """Write GMFlow as it is published: weights under ``model``."""
    model = fill(GMFlow(scales)).eval()  # type: ignore[arg-type]
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, file)
    return model
