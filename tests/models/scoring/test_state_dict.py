"""Files of weights: tensors are read, code is not run, and what is damaged is named."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.checkpoint import CheckpointError
from models.scoring.state_dict import read_state_dict


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    torch.save({"model": {"weight": torch.zeros(2)}, "args": Trap(mark)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"holds more than weights.*inert_pickle") as error:
        read_state_dict(tmp_path / "weights.pth")
    assert not mark.exists()
    assert "weights_only" not in str(error.value)  # PyTorch's own words advise to run it


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match="holds more than weights"):
        read_state_dict(tmp_path / "module.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>not found</html>", b"PK\x03\x04 and nothing more"])
def test_a_file_that_is_damaged_or_a_page_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is .*cut off or no .*fetch it again"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False])
def test_half_a_file_is_named_and_the_whole_is_read(tmp_path, zipped):
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {"weight": torch.arange(1000.0)}}, file, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_state_dict(file)["weight"], torch.arange(1000.0))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="fetch it again"):
        read_state_dict(file)


def test_a_file_without_tensors_is_named(tmp_path):
    torch.save({"step": 3}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_state_dict(tmp_path / "weights.pth")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights are missing: .*gone\.pth"):
        read_state_dict(tmp_path / "gone.pth")


def test_the_command_that_the_error_names_makes_safetensors_and_runs_nothing(tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "module.pth"
    module = torch.nn.Linear(2, 3)
    module.trap = Trap(mark)
    torch.save(module, file)
    with pytest.raises(CheckpointError) as error:
        read_state_dict(file)
    command = shlex.split(str(error.value).partition("runs none of it: ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, cwd=Path(__file__).parents[3])
    state = read_state_dict(file.with_suffix(".safetensors"))
    assert torch.equal(state["weight"], module.weight) and set(state) == {"weight", "bias"}
    assert not mark.exists()
