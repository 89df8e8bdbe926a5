"""Prompts of sample videos, which encode servers embed, so that no rank has to load text encoders for them."""

import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from training.encode import wire
from training.encode.servers import Servers, first_answer

SLOW_S = 120.0  # seconds that a server may take for a prompt, as its device may be at a long video


class Prompt(BaseModel):
    """What the action ``embed`` of a server is given."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str


def served_text(servers: Servers, encoder: str, patience_s: float, prompt: str) -> tuple[Tensor, Tensor]:
    """Text tokens [S, width] and pooled text [width] of a prompt, from the first server that gives them.

    Args:
        encoder: fingerprint of the weights that it must encode with.

    Raises:
        NoServer: none gave them in ``patience_s``; WrongToken: one does not take the token.
    """
    asked = Prompt(prompt=prompt).model_dump_json().encode()

    def ask(address: str) -> tuple[Tensor, Tensor]:
        parts: list[pa.Buffer] = servers.act(address, "embed", asked, SLOW_S)
        if len(parts) != 1:
            raise wire.WireError(f"{len(parts)} answers to one prompt")
        text, weights = wire.text_from_stream(parts[0])
        if weights != encoder:
            raise wire.WireError(f"it encodes with other weights, {weights} and not {encoder} as this run")
        if text.tokens.ndim != 2 or text.pooled.ndim != 1:
            raise wire.WireError(f"a prompt became {list(text.tokens.shape)} and {list(text.pooled.shape)}")
        if not (torch.isfinite(text.tokens).all() and torch.isfinite(text.pooled).all()):
            raise wire.WireError("a prompt's embedding is not finite")
        return text.tokens, text.pooled

    return first_answer(servers, ask, patience_s)
