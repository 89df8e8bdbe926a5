"""Averaged weights: the exponential moving average of the model over its steps, which sampling and the result use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from training.distributed.parallel import local


class Ema:
    """The average of a model's parameters, float32, sharded as they are.

    Made after ``parallelize``, it starts as the model is.

    Attributes:
        state: parameter name -> its average, a DTensor where the parameter is one.

    ValueError: the decay is not from 0 to below 1; or weights are of half precision, which a step's share is too small
    to move.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of averaged weights is from 0 to below 1, not {decay}")
        self.decay = decay
        parameters = dict(model.named_parameters())
        half = [name for name, parameter in parameters.items() if parameter.dtype != torch.float32]
        if half:
            raise ValueError(f"weights are averaged in float32, and {half[0]} is {parameters[half[0]].dtype}")
        self.state = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._model = [local(parameter.detach()) for parameter in parameters.values()]
        self._mean = [local(tensor) for tensor in self.state.values()]

    @torch.no_grad()
    def update(self) -> None:
        """``mean = decay mean + (1 - decay) model``, on this rank's shards, after a step of the optimiser."""
        torch._foreach_lerp_(self._mean, self._model, 1 - self.decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Meanwhile the model has the averaged weights, and the average those of the model: nothing is copied whole."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        if isinstance(model, FSDPModule):
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # weights gathered before the exchange would outlive it
        for mean, parameter in zip(self._mean, self._model, strict=True):
            held: Tensor = mean.clone()
            mean.copy_(parameter)
            parameter.copy_(held)
