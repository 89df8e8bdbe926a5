"""VideoAlign's published checkpoint, which has its weights in three places, to one network.

The layout is a folder with ``model_config.json`` and ``checkpoint-STEP/``; the highest step counts. Qwen2-VL's own
folder is the base. ``non_lora_state_dict.pth`` replaces what was trained in full (the vision tower, the embeddings) and
brings the head; ``adapter_model.safetensors`` holds LoRA's factors for the seven linear layers of each layer of the
language model, which are merged: W + (alpha / r) B A, in float32. ``prompt_template.py`` of the published repository
lies in the folder too.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoint import CheckpointError, check_keys
from models.scoring.loading import build, read_safetensors
from models.scoring.state_dict import read_state_dict
from models.scoring.videoalign import DIMENSIONS, Judge, Statistics, VideoAlign
from models.scoring.videoalign_prompt import TEMPLATE_FILE, TEMPLATE_SHA256, read_template, reward_token_ids
from models.scoring.videoalign_video import FPS, MOST_PIXELS

ADAPTER = "adapter_model.safetensors"
NON_LORA = "non_lora_state_dict.pth"
HEAD = "rm_head.weight"

_PREFIX = "base_model.model."
_EMBEDDING = "model.language_model.embed_tokens.weight"
_ADAPTED = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def load_videoalign(
    folder: str | Path,
    base: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    template_sha256: str = TEMPLATE_SHA256,
) -> Judge:
    """The judge from the published folder and that of Qwen2-VL-2B-Instruct; nothing is fetched.

    Args:
        dtype: of the weights in memory; by default as the base's are stored. The published run is bfloat16, in which
            rewards near 3 go in steps of 0.016.
        template_sha256: of the wording, by default the published one's.

    Raises:
        FileNotFoundError: files are missing; all are named.
        CheckpointError: a file is damaged, or keys or shapes do not fit; the first are named.
        ValueError: the wording is not the one of this hash.
    """
    from transformers import AutoTokenizer, Qwen2VLConfig

    folder, base = Path(folder), Path(base)
    step = _highest_step(folder)
    _check_files(folder, base, step)
    settings = json.loads((folder / "model_config.json").read_text())
    template = read_template(folder / TEMPLATE_FILE, sha256=template_sha256)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    tokens = reward_token_ids(tokenizer)
    config: Any = Qwen2VLConfig.from_pretrained(base, local_files_only=True)
    state = merged_state(
        {key: tensor for file in _base_files(base) for key, tensor in read_safetensors(file).items()},
        read_safetensors(step / ADAPTER),
        read_state_dict(step / NON_LORA),
        scale=lora_scale(settings),
        layers=config.text_config.num_hidden_layers,
    )
    config.text_config.vocab_size = len(state[_EMBEDDING]) if _EMBEDDING in state else 0
    if config.text_config.vocab_size <= max(tokens):
        raise CheckpointError(f"{step}: {_EMBEDDING} has no rows for the reward tokens {tokens}")
    dtype = dtype or state[_EMBEDDING].dtype
    network = build(lambda: VideoAlign(config, tokens), state, str(step), dtype=dtype, device=device)
    data = settings.get("data_config", {})
    return Judge(
        network,
        tokenizer,
        template,
        statistics(settings),
        fps=data.get("fps", FPS),
        most_pixels=data.get("max_frame_pixels", MOST_PIXELS),
    )


def merged_state(
    base: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    non_lora: Mapping[str, Tensor],
    *,
    scale: float,
    layers: int,
) -> dict[str, Tensor]:
    """The state of ``VideoAlign`` from the three sources, in the names of transformers 5.

    Raises:
        CheckpointError: adapters are not those of the seven linear layers of all ``layers``, or do not fit, or the head
            is missing.
    """
    state = {renamed(key): tensor for key, tensor in base.items() if key != "lm_head.weight"}
    replaced = {renamed(_without_prefix(key)): tensor for key, tensor in non_lora.items()}
    if HEAD not in replaced:
        raise CheckpointError(f"{NON_LORA} has no {HEAD}, without which there are no rewards")
    embedding = replaced.get(_EMBEDDING)  # it has rows for the reward tokens, and none for Qwen's unused ones
    expected: dict[str, Sequence[int]] = {
        key: state[key].shape for key in replaced if key in state and key != _EMBEDDING
    }
    expected |= {HEAD: (len(DIMENSIONS), replaced[HEAD].shape[1])}
    expected |= {_EMBEDDING: embedding.shape} if embedding is not None else {}
    check_keys({key: tensor.shape for key, tensor in replaced.items()}, expected, NON_LORA)
    state |= replaced

    targets = {
        f"{_PREFIX}model.layers.{layer}.{name}": f"model.language_model.layers.{layer}.{name}.weight"
        for layer in range(layers)
        for name in _ADAPTED
    }
    absent = [key for key in targets.values() if key not in state]
    if absent:
        raise CheckpointError(f"the base has no {absent[0]}, nor {len(absent) - 1} others that adapters are for")
    check_keys(
        {key: tensor.shape for key, tensor in adapter.items()}, _adapter_shapes(adapter, targets, state), ADAPTER
    )
    for name, key in targets.items():
        low, high = (adapter[f"{name}.lora_{factor}.weight"].float() for factor in "AB")
        state[key] = (state[key].float() + scale * (high @ low)).to(_precise(state[key].dtype))
    return state


def renamed(key: str) -> str:
    """A name of Qwen2-VL's published files in the names of transformers 5, which are left as they are."""
    if key.startswith(("model.visual.", "model.language_model.")) or key == HEAD:
        return key
    if key.startswith("visual."):
        return f"model.{key}"
    return f"model.language_model.{key.removeprefix('model.')}" if key.startswith("model.") else key


def lora_scale(settings: Mapping[str, Any]) -> float:
    """What the product of LoRA's factors is multiplied by: alpha / r, or alpha / sqrt(r) where it was so trained."""
    try:
        lora = settings["peft_lora_config"]
        rank, alpha = lora["lora_r"], lora["lora_alpha"]
    except KeyError as error:
        raise CheckpointError(f"model_config.json says nothing of {error}, which merging the adapters needs") from None
    return alpha / (math.sqrt(rank) if lora.get("use_rslora") else rank)


def statistics(settings: Mapping[str, Any]) -> Statistics:
    """The folder's own statistics (``inference_config``), or the published ones where it has none."""
    values = settings.get("inference_config")
    if values is None:
        return Statistics()
    mean, std = (tuple(float(values[f"{name}_{kind}"]) for name in DIMENSIONS) for kind in ("mean", "std"))
    return Statistics(mean, std)  # type: ignore[arg-type]


def _adapter_shapes(
    adapter: Mapping[str, Tensor], targets: Mapping[str, str], state: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """What shapes the factors must have, for the rank of the first."""
    ranks = [tensor.shape[0] for key, tensor in adapter.items() if key.endswith("lora_A.weight")]
    rank = ranks[0] if ranks else 0
    shapes: dict[str, tuple[int, ...]] = {}
    for name, key in targets.items():
        rows, columns = state[key].shape
        shapes |= {f"{name}.lora_A.weight": (rank, columns), f"{name}.lora_B.weight": (rows, rank)}
    return shapes


def _precise(dtype: torch.dtype) -> torch.dtype:
    """Merged weights stay float32 until the network's dtype is known: rounding twice would add to the error."""
    return torch.promote_types(dtype, torch.float32)


def _without_prefix(key: str) -> str:
    if not key.startswith(_PREFIX):
        raise CheckpointError(f"{NON_LORA}: {key} should begin with {_PREFIX}")
    return key.removeprefix(_PREFIX)


def _highest_step(folder: Path) -> Path:
    steps = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := re.search(r"-(\d+)$", path.name))}
    if not steps:
        raise FileNotFoundError(f"{folder} has no checkpoint-STEP: fetch KwaiVGI/VideoReward from Hugging Face")
    return steps[max(steps)]


def _base_files(base: Path) -> list[Path]:
    index = base / "model.safetensors.index.json"
    if not index.is_file():
        return [base / "model.safetensors"]
    return [base / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _check_files(folder: Path, base: Path, step: Path) -> None:
    """FileNotFoundError that names every file that is missing."""
    wanted = [folder / "model_config.json", folder / TEMPLATE_FILE, step / ADAPTER, step / NON_LORA]
    wanted += [base / "config.json", base / "tokenizer_config.json", *_base_files(base)]
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"VideoAlign is not complete; missing: {', '.join(missing)}. Weights are KwaiVGI/VideoReward and "
            f"Qwen/Qwen2-VL-2B-Instruct of Hugging Face; {TEMPLATE_FILE} is in github.com/KwaiVGI/VideoAlign"
        )
