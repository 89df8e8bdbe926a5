"""Flow matching: what the transformer is asked, and how its answer is judged (report, section 5.1, equation 1).

The report writes ``x_t = (1 - t) noise + t data`` and predicts ``data - noise``. Here it is in the sign of the SD3
weights, with ``sigma = 1 - t``: ``x = (1 - sigma) data + sigma noise``, and the prediction is ``noise - data``. The
loss is the same number, as the square of a difference does not see the sign.

All in float32: bfloat16 rounds a sigma of 0.9988 to 1.
"""

import torch
from torch import Tensor

from models.sampler import TIME_SCALE, shift_sigma


def logit_normal_sigma(count: int, generator: torch.Generator, shift: float = 1.0) -> Tensor:
    """Noise levels float32 [count] in (0, 1): the sigmoid of a standard normal (Esser et al., 2024), then shifted.

    The draw is the CPU generator's, so it does not depend on the device.
    """
    return shift_sigma(torch.sigmoid(torch.randn(count, generator=generator)), shift)


def timestep_of(sigma: Tensor) -> Tensor:
    """The time input of the transformer, float32."""
    return TIME_SCALE * sigma.float()


def noised(data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """``data`` [B, ...] at noise levels ``sigma`` [B], float32."""
    level = sigma.float().view(-1, *[1] * (data.ndim - 1))
    return torch.lerp(data.float(), noise.float(), level)


def squared_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """For each sample the sum of squared errors of the predicted velocity, float32 [B].

    Divide their sum by the numbers in the whole step's targets, over all ranks and micro-batches, and it is the loss:
    then gradients are *summed* over ranks, and each number weighs the same whatever the bucket of its rank; a mean of
    means would not.

    Args:
        prediction: [B, ...], of this rank, or of this rank's shard of the sequence.
        target: noise - data, of the same shape.

    Raises:
        ValueError: shapes differ, which broadcasting would hide.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target have one shape, not {list(prediction.shape)}, {list(target.shape)}")
    return (prediction.float() - target.float()).square().flatten(1).sum(1)
