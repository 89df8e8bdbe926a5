"""Ascend devices have no float64: a step of training must make none there."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.checkpoint.ema import Ema
from training.data.buckets import Bucket, Shape
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.distributed.parallel import Parallel
from training.distributed.prepare import on_meta, prepare
from training.objectives.flow_matching import noised, squared_errors, timestep_of
from training.observe.metrics import Metrics


class NoFloat64(TorchDispatchMode):
    """The meta device as one that refuses float64; tables may be made in it on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and each.is_meta and each.dtype == torch.float64:
                raise TypeError(f"{func} makes float64, which the device does not have")
        return out


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_step_makes_no_float64_on_the_device(recompute: Any) -> None:
    parallel = on_meta(Layout())
    model = prepare("tiny", MachineConfig(recompute=recompute), parallel, 0)
    config = model.config
    with NoFloat64(), torch.device("meta"):
        latents, noise = torch.empty(2, 16, 3, 4, 6), torch.empty(2, 16, 3, 4, 6)
        sigma, pooled = torch.empty(2), torch.empty(2, config.pooled_projection_dim)
        text = torch.empty(2, 7, config.joint_attention_dim)
        optimizer, ema = torch.optim.AdamW(model.parameters(), foreach=True), Ema(model, 0.9)
        prediction = parallel.predict(model, noised(latents, noise, sigma), text, pooled, timestep_of(sigma))
        squared_errors(prediction, parallel.own(noise - latents)).sum().backward()
        parallel.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        ema.update()


def test_the_stand_in_refuses_float64() -> None:
    with NoFloat64(), pytest.raises(TypeError, match="does not have"):
        torch.empty(2, device="meta").double()


class OnDevice(Tensor):
    """Sums on a device that has no float64."""

    def double(self) -> Tensor:
        raise TypeError("the device does not have float64")

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)


def test_a_line_of_metrics_makes_no_float64_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel = Parallel(Layout(), 0, torch.device("cpu"))
    monkeypatch.setattr(parallel, "total", lambda tensor: tensor.as_subclass(OnDevice))
    config = prepare("tiny", MachineConfig(), on_meta(Layout()), 0).config
    metrics = Metrics(parallel, config, [Bucket(1, "1x1")], None)
    metrics.add([Bucket(1, "1x1")], Shape(9, 32, 32), torch.tensor([0.5]), 7, torch.tensor([1.0]))
    metrics.end_step(0, torch.tensor(1.0), torch.tensor(1.0), 0.0)
    assert metrics.line(1, 1, 1e-4)["loss"] == 1.0
