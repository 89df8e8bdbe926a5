"""A tiny VideoAlign in the published layout: Qwen2-VL's folder, and the checkpoint with its three weight sources."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.scoring.videoalign_prompt import REWARD_TOKENS
from tests.models.weights import drawn

DATA = Path(__file__).parents[2] / "data"
TINY = json.loads((DATA / "videoalign_tiny_keys.json").read_text())
NAMES = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "vision": "<|vision_pad|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "pad": "<|endoftext|>",
}
SENTENCE = "rate this video from 0 to 10 good looks motion text prompt fits END a cat runs dog sleeps in the sun : -"
VQ, MQ, TA = REWARD_TOKENS
WORDING = f"rate this video\n good looks : {VQ} END\n motion : {MQ} END\n prompt - {{text_prompt}}\n fits : {TA} END\n"
WORDING_SHA256 = hashlib.sha256(WORDING.encode()).hexdigest()
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def sources() -> dict[str, dict[str, torch.Tensor]]:
    """The three sources of the golden, each tensor drawn by its own name."""
    return {
        kind: {name: drawn(name, shape).float() for name, shape in TINY[kind].items()}
        for kind in ("base", "adapter", "non_lora")
    }


def config() -> dict:
    """``config.json`` of the base, flat as Qwen2-VL's published one."""
    ids = TINY["token_ids"]
    return {
        "model_type": "qwen2_vl",
        **TINY["text_config"],
        "rope_scaling": TINY["rope_scaling"],
        "vision_config": TINY["vision_config"],
        "image_token_id": ids["image"],
        "video_token_id": ids["video"],
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
    }


def write(root: Path) -> tuple[Path, Path]:
    """Write both folders. Returns the checkpoint's and the base's."""
    folder, base = root / "VideoReward", root / "Qwen2-VL-2B-Instruct"
    step = folder / "checkpoint-11352"
    step.mkdir(parents=True)
    (folder / "checkpoint-500").mkdir()  # an earlier one, which nothing reads
    base.mkdir()
    weights = sources()
    save_file(weights["adapter"], step / "adapter_model.safetensors")
    torch.save(weights["non_lora"], step / "non_lora_state_dict.pth")
    halves = sorted(weights["base"])
    parts = {"model-00001-of-00002.safetensors": halves[::2], "model-00002-of-00002.safetensors": halves[1::2]}
    for name, keys in parts.items():
        save_file({key: weights["base"][key] for key in keys}, base / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "config.json").write_text(json.dumps(config()))
    lora = TINY["lora"]
    settings = {
        "data_config": {"fps": 2.0, "max_frame_pixels": 200704, "eval_dim": ["VQ", "MQ", "TA"]},
        "peft_lora_config": {"lora_r": lora["r"], "lora_alpha": lora["alpha"], "use_rslora": lora["use_rslora"]},
    }
    (folder / "model_config.json").write_text(json.dumps(settings))
    (folder / "prompt_template.py").write_text(f"OTHER = 1\nDETAILED_PROMPT_WITH_SPECIAL_TOKEN = {WORDING!r}\n")
    write_tokenizer(base)
    return folder, base


def write_tokenizer(base: Path) -> None:
    """A tokenizer of words, with Qwen2-VL's special tokens at the ids of the golden and none for rewards."""
    ids = TINY["token_ids"]
    words = ["<unk>", *SENTENCE.split(), "user"]
    words += [f"w{number}" for number in range(min(ids[name] for name in NAMES) - len(words))]
    vocabulary = {word: number for number, word in enumerate(words)} | {NAMES[name]: ids[name] for name in NAMES}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=NAMES["pad"], unk_token="<unk>")
    fast.add_tokens(list(NAMES.values()), special_tokens=True)
    fast.chat_template = CHAT
    fast.save_pretrained(base)
