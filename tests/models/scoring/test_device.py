"""Where networks run: said by torch.accelerator as torch 2.7 has it, whatever kind of accelerator there is."""

import pytest
import torch

from models.scoring.device import current_device, dtype_for, wait_for


@pytest.mark.parametrize(("available", "count"), [(False, 0), (False, 1), (True, 0)])
def test_without_a_device_it_is_the_cpu_also_in_a_build_for_accelerators(monkeypatch, available, count):
    """Such a build names its kind of accelerator on every machine."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert current_device() == torch.device("cpu")


# torch_npu gives "privateuseone" its name "npu"; here it keeps its own, as another name would stay for all later tests.
@pytest.mark.parametrize("kind", ["cuda", "privateuseone", "xpu"])
def test_with_devices_it_is_the_one_that_is_current_in_this_thread(monkeypatch, kind):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    assert str(current_device()) == f"{kind}:3"


def test_the_number_format_is_the_one_that_was_asked_for():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert dtype_for("float32", cpu) == dtype_for("float32", gpu) == torch.float32
    assert dtype_for("bfloat16", cpu) == torch.bfloat16
    assert dtype_for("float16", gpu) == torch.float16
    with pytest.raises(ValueError, match="float16 is for accelerators"):
        dtype_for("float16", cpu)
    with pytest.raises(ValueError, match="not in int64"):
        dtype_for("int64", cpu)  # type: ignore[arg-type]


def test_waiting_for_the_cpu_is_done_at_once():
    wait_for(torch.device("cpu"))
