"""The versions that preflight says, of what is installed and of what is not."""

from pathlib import Path

import pytest
import torch

from training.launch import versions as module
from training.launch.versions import CANN_HOME, cann_version, versions


def test_each_kind_of_device_has_what_it_needs_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "aarch64-linux" / "ascend_toolkit_install.info"
    info.parent.mkdir()
    info.write_text("package_name=Ascend-cann-toolkit\nversion=9.1.0\ninnerversion=V100R001\narch=aarch64\n")
    monkeypatch.setenv(CANN_HOME, str(tmp_path))
    monkeypatch.setattr(module, "version", {"torch_npu": "2.13.0"}.__getitem__)
    assert versions("npu") == f"torch {torch.__version__}, torch_npu 2.13.0, CANN 9.1.0"
    assert versions("cpu") == f"torch {torch.__version__}"
    assert versions("cuda").startswith(f"torch {torch.__version__}, CUDA ")


def test_what_is_not_there_is_said_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CANN_HOME, raising=False)
    assert "torch_npu not installed here, CANN unknown, as ASCEND_HOME_PATH is not set here" in versions("npu")
    assert cann_version(str(tmp_path)).startswith("unknown, as ")
