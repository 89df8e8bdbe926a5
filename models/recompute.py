"""Activation checkpointing with a policy: which blocks run again in the backward pass, and what of them is kept.

| mode | kept of a block | computed again |
|---|---|---|
| none | all that its backward needs | nothing |
| attention | its inputs and the attention's output | all but attention, which is most of the work of a long video |
| full | its inputs | the whole block |

``keep_linear`` adds linear layers to what mode "attention" keeps, named by what they cost and bring:

- "projection": query, key, value and output, four times the width of the stream, 8 D^2 FLOPs a token
- "contraction": the second feed-forward layer, the width of the stream, 8 D^2 FLOPs a token: most FLOPs saved per byte
- "expansion": the first feed-forward layer, four times the width of the stream, 8 D^2 FLOPs a token
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Out = TypeVar("Out")

Mode = Literal["none", "attention", "full"]
LinearKind = Literal["projection", "expansion", "contraction"]


@dataclass(frozen=True)
class Recompute:
    """How a model's blocks are recomputed.

    Attributes:
        mode: see above.
        every: only every so-manieth block, the first included; the others keep everything.
        keep_linear: the linear layers whose outputs mode "attention" keeps besides attention's.
    """

    mode: Mode = "none"
    every: int = 1
    keep_linear: frozenset[LinearKind] = frozenset()

    def __post_init__(self) -> None:
        if self.mode not in ("none", "attention", "full"):
            raise ValueError(f'recompute mode is "none", "attention" or "full", not "{self.mode}"')
        if self.every < 1:
            raise ValueError(f"recompute every n-th block: n must be 1 or more, not {self.every}")
        if self.keep_linear and self.mode != "attention":
            raise ValueError(f'keep_linear goes with recompute mode "attention", not "{self.mode}"')

    def run(self, index: int, block: Callable[..., Out], *inputs: Any) -> Out:
        """``block(*inputs)``, the ``index``-th of the model, checkpointed as the policy says."""
        if self.mode == "none" or index % self.every or not torch.is_grad_enabled():
            return block(*inputs)
        kwargs: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # there is no dropout
        if self.mode == "attention":
            kwargs["context_fn"] = partial(create_selective_checkpoint_contexts, self._policy)
        return checkpoint(block, *inputs, **kwargs)

    def _policy(self, context: object, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        keep = _is_expensive(operator) or _linear_kind(operator, args) in self.keep_linear
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _is_expensive(operator: Any) -> bool:
    """Attention of any backend; and collectives, which must not run twice."""
    name = operator.name()
    return "attention" in name or name.startswith("_c10d_functional::")


def _linear_kind(operator: Any, args: tuple[Any, ...]) -> LinearKind | None:
    """Which of a block's linear layers a matrix product is, by the shape of its weight."""
    if operator not in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
        return None
    ins, outs = args[-1].shape
    if ins == outs:
        return "projection"
    return "expansion" if outs == 4 * ins else "contraction" if ins == 4 * outs else None
