"""What keeps supervised fine-tuning near the pre-trained model: a KL penalty in velocity space (report, section 6.1).

Both models are flows from the same noise, so the divergence of their samples is an integral over time of how far their
velocities lie apart (derived and checked in NUMERICS 16). In the sign of SD3, with ``sigma = 1 - t``::

    KL = integral over sigma in 0..1 of  (1 - sigma) / sigma * E |v - u|^2

For trained networks the difference does not vanish at sigma 0, where the weight is infinite. So the weight is either
capped or 1: a fixed reweighting of the same divergence. The penalty is taken at the noise levels of the batch, which
are logit-normal; dividing by that density makes it the integral.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CAP = 10.0


def kl_weight(sigma: Tensor, cap: float = CAP) -> Tensor:
    """``min((1 - sigma) / sigma, cap)``, of the shape and dtype of ``sigma``: what |v - u|^2 weighs in the divergence.

    ValueError where ``cap`` is not positive. It may be infinite, which is the exact weight.
    """
    if not cap > 0:
        raise ValueError(f"the weight's cap is positive, not {cap}")
    return ((1 - sigma) / sigma).clamp(max=cap)


def logit_normal_density(sigma: Tensor) -> Tensor:
    """The density of the noise levels of training, at ``sigma`` in (0, 1): their logit is a standard normal."""
    logit = torch.logit(sigma)
    return torch.exp(-logit.square() / 2) / (math.sqrt(2 * math.pi) * sigma * (1 - sigma))


@dataclass(frozen=True)
class KLPenalty:
    """How strongly, and with which weight, a model is held near the reference.

    Attributes:
        beta: what the penalty is multiplied by; 0 is none.
        weight: "one" weighs every noise level alike; "kl" as the divergence does, up to ``cap``.
        cap: of the weight "kl".
        literal: divide by the density of the noise levels, so that the mean over a batch estimates the integral.
    """

    beta: float
    weight: Literal["one", "kl"] = "one"
    cap: float = CAP
    literal: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf or not self.cap > 0 or self.weight not in ("one", "kl"):
            raise ValueError(f"a penalty has beta >= 0, a cap > 0 and the weight 'one' or 'kl', not {self}")

    def __call__(self, prediction: Tensor, reference: Tensor, sigma: Tensor) -> Tensor:
        """For each sample the weighted sum of squared differences, float32 [B] (float64 of float64).

        It is reduced like the flow loss: divide the sum by the numbers of the whole step, over all ranks.

        Args:
            prediction: the model's velocity [B, ...], which gets a gradient.
            reference: the frozen model's velocity of the same input at the same noise level, which gets none.
            sigma: the noise levels [B].

        Raises:
            ValueError: shapes differ, which broadcasting would hide.
        """
        if prediction.shape != reference.shape or sigma.shape != prediction.shape[:1]:
            raise ValueError(
                "prediction and reference have one shape, and sigma one number a sample, not "
                f"{list(prediction.shape)}, {list(reference.shape)} and {list(sigma.shape)}"
            )
        exact = torch.promote_types(prediction.dtype, torch.float32)
        apart = (prediction.to(exact) - reference.detach().to(exact)).square().flatten(1).sum(1)
        level = sigma.to(exact)
        weight = kl_weight(level, self.cap) if self.weight == "kl" else torch.ones_like(level)
        if self.literal:
            weight = weight / logit_normal_density(level)
        return self.beta * weight * apart
