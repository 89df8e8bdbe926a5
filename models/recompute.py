"""Activation checkpointing with a policy: which blocks run again in the backward pass, and what of them is kept.

| mode | kept of a block | computed again |
|---|---|---|
| none | all that its backward needs | nothing |
| attention | its inputs, attention's output, what collectives brought | all else; attention is most of a long video |
| full | its inputs | the whole block, the exchanges of sequence parallelism included |
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Out = TypeVar("Out")

Mode = Literal["none", "attention", "full"]


@dataclass(frozen=True)
class Recompute:
    """How a model's blocks are recomputed.

    Attributes:
        mode: see above.
        every: of so many blocks in a row the first is recomputed, and the others keep everything.
    """

    mode: Mode = "none"
    every: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("none", "attention", "full"):
            raise ValueError(f'recompute mode is "none", "attention" or "full", not "{self.mode}"')
        if self.every < 1:
            raise ValueError(f"recompute every n-th block: n must be 1 or more, not {self.every}")
        if self.every > 1 and self.mode == "none":
            raise ValueError(f'recompute mode "none" recomputes no block, so not every {self.every}th either')

    def mode_of(self, index: int) -> Mode:
        """How the ``index``-th block of the model is recomputed."""
        return "none" if index % self.every else self.mode

    def run(self, index: int, block: Callable[..., Out], *inputs: Any) -> Out:
        """``block(*inputs)``, the ``index``-th of the model, checkpointed as the policy says."""
        mode = self.mode_of(index)
        if mode == "none" or not torch.is_grad_enabled():
            return block(*inputs)
        kwargs: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # there is no dropout
        if mode == "attention":
            kwargs["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
        return checkpoint(block, *inputs, **kwargs)


def _policy(context: object, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if _is_expensive(operator) else CheckpointPolicy.PREFER_RECOMPUTE


def _is_expensive(operator: Any) -> bool:
    """Attention of any backend; and the functional collectives of a block, which must not run twice.

    A collective of the other kind, ``c10d::``, writes into a buffer that it is given, so nothing of it could be kept;
    FSDP gathers a block's weights by such ones, and has to gather them again.
    """
    name = operator.name()
    return "attention" in name or name.startswith("_c10d_functional::")
