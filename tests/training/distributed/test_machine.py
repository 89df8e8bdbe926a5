"""The device that a run is on is the machine's."""

import pytest
import torch

from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.distributed.parallel import start, stop
from training.distributed.prepare import prepare


@pytest.mark.effect("MachineConfig.device")
def test_the_model_is_on_the_machines_device_or_the_machine_has_none() -> None:
    for device in ("cpu", "cuda"):
        machine = MachineConfig(device=device)  # type: ignore[arg-type]
        if device == "cuda" and not torch.cuda.is_available():
            with pytest.raises(RuntimeError, match='device "cuda" was asked for, and PyTorch sees none here'):
                start(Layout(), machine.device)
            continue
        parallel = start(Layout(), machine.device)
        model = prepare("tiny", machine, parallel, 0)
        assert {parameter.device.type for parameter in model.parameters()} == {device}
        stop(parallel)
