"""The words that VideoAlign is asked with: the published wording, read from its repository's own file.

The wording is part of the network: another one gives other rewards. It is not repeated here. It is read from
``prompt_template.py`` of KwaiVGI/VideoAlign, which lies beside the weights, as data (the file is parsed, never run),
and checked by its hash. The video comes first, then one text with the three reward tokens; the prompt of the video
stands after the first two, so visual and motion quality cannot depend on it (NUMERICS 6b).
"""

import ast
import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor, tensor

REWARD_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
TEMPLATE_FILE = "prompt_template.py"
TEMPLATE_NAME = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
TEMPLATE_SHA256 = "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"  # of the wording, in UTF-8

_PLACE = "{text_prompt}"
_VIDEO = "<|video_pad|>"


def read_template(file: str | Path, *, sha256: str = TEMPLATE_SHA256) -> str:
    """The wording in a ``prompt_template.py``, with ``{text_prompt}`` where the prompt goes.

    Raises:
        FileNotFoundError: there is no such file; says where it comes from.
        ValueError: the file has no such wording, or it is not the one of this hash.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(
            f"VideoAlign's wording is missing: put {TEMPLATE_FILE} of github.com/KwaiVGI/VideoAlign at {file}"
        )
    try:
        found = [
            ast.literal_eval(node.value)
            for node in ast.parse(file.read_text("utf-8")).body
            if isinstance(node, ast.Assign)
            and [target.id for target in node.targets if isinstance(target, ast.Name)] == [TEMPLATE_NAME]
        ]
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{file} is no file of Python constants ({error})") from None
    if len(found) != 1 or not isinstance(found[0], str):
        raise ValueError(f"{file} should set {TEMPLATE_NAME} to a text once")
    hashed = hashlib.sha256(found[0].encode()).hexdigest()
    if hashed != sha256:
        raise ValueError(f"{file}: the wording has the hash {hashed}, not {sha256}: rewards would be others")
    if any(found[0].count(part) != 1 for part in (*REWARD_TOKENS, _PLACE)):
        raise ValueError(f"{file}: the wording should hold {_PLACE} and each of {', '.join(REWARD_TOKENS)} once")
    return found[0]


def reward_token_ids(tokenizer: Any) -> tuple[int, int, int]:
    """The ids of the tokens for visual quality, motion quality and text alignment; a tokenizer without gets them."""
    tokenizer.add_tokens(list(REWARD_TOKENS), special_tokens=True)
    vq, mq, ta = tokenizer.convert_tokens_to_ids(list(REWARD_TOKENS))
    return vq, mq, ta


def prompt_ids(tokenizer: Any, template: str, prompt: str, visual_tokens: int) -> list[int]:
    """The token ids of one conversation: the chat template around a video of so many tokens and the wording.

    Strings that are special tokens are taken out of ``prompt``: a second reward token would be taken for the first.
    """
    text = template.format(text_prompt=without_special_tokens(tokenizer, prompt))
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    if chat.count(_VIDEO) != 1:
        raise ValueError(f"the chat template of this tokenizer puts {chat.count(_VIDEO)} videos into a conversation")
    return tokenizer(chat.replace(_VIDEO, _VIDEO * visual_tokens)).input_ids


def without_special_tokens(tokenizer: Any, prompt: str) -> str:
    """The prompt without strings that the tokenizer reads as special tokens, also none that taking one out makes."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    special = sorted({*REWARD_TOKENS, _VIDEO, *added}, key=len, reverse=True)
    while found := [token for token in special if token in prompt]:
        prompt = prompt.replace(found[0], "")
    return prompt


def padded(rows: list[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Token ids [B, L], filled up at the end with ``padding``, and the mask [B, L] that is 1 where a token is."""
    longest = max(map(len, rows))
    ids = tensor([row + [padding] * (longest - len(row)) for row in rows])
    return ids, tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
