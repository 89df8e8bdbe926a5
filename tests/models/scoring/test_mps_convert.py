"""The published MPS is a pickled module: it is converted without running what it names."""

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from flows.convert_mps import main
from models.checkpoint import CheckpointError
from models.scoring.inert_pickle import PickleError, state_of_pickle
from models.scoring.mps import load_mps
from models.scoring.mps_convert import convert_mps
from tests.models.scoring.test_mps import TINY, tiny


class Runs:
    """Unpickling it creates a file, if it is unpickled as pickle does."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.file}",)


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A pickled module as published: of classes that no reader has, with the positions of an old transformers."""
    modules = types.ModuleType("trainer_of_mps")
    for name in ("CLIPModel", "Tower"):
        setattr(modules, name, type(name, (nn.Module,), {"__module__": "trainer_of_mps"}))
    monkeypatch.setitem(sys.modules, "trainer_of_mps", modules)
    network = tiny(torch.float16)
    module = modules.CLIPModel()
    for key, tensor in network.state_dict().items():
        owner = module
        for part in key.split(".")[:-1]:
            if part not in owner._modules:
                owner.add_module(part, modules.Tower())
            owner = owner._modules[part]
        name = key.split(".")[-1]
        buffer = name == "inv_freq" or (key.startswith("cross") and name == "bias")
        owner.register_buffer(name, tensor) if buffer else owner.register_parameter(name, nn.Parameter(tensor))
    for tower, count in (("text_model", 77), ("vision_model", 17)):
        embeddings = module._modules["model"]._modules[tower]._modules["embeddings"]
        embeddings.register_buffer("position_ids", torch.arange(count)[None])
        embeddings.register_buffer("scratch", torch.zeros(1), persistent=False)
    module.config = types.SimpleNamespace(layers=2)
    torch.save(module, tmp_path / "MPS_overall_checkpoint.pth")
    return tmp_path / "MPS_overall_checkpoint.pth"


def test_the_pickled_module_becomes_a_folder_that_loads(published, tmp_path) -> None:
    conversion = convert_mps(published, tmp_path / "mps", config=TINY)
    expected = tiny(torch.float16).state_dict()
    loaded = load_mps(tmp_path / "mps")
    assert {key: torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items()} == dict.fromkeys(
        expected, True
    )
    assert loaded.model.text_projection.weight.dtype == torch.float16
    assert conversion.tensors == len(expected)
    assert [key.rsplit(".", 1)[1] for key in conversion.dropped] == ["position_ids", "position_ids"]
    assert {"trainer_of_mps.CLIPModel", "trainer_of_mps.Tower"} <= set(conversion.inert)
    with pytest.raises(FileExistsError):
        convert_mps(published, tmp_path / "mps", config=TINY)


def test_what_a_pickle_names_is_never_run(published, tmp_path) -> None:
    module = torch.load(published, weights_only=False)
    module.trap = Runs(tmp_path / "ran")
    torch.save(module, tmp_path / "trapped.pth")
    state, inert = state_of_pickle(tmp_path / "trapped.pth")
    assert "posix.system" in inert
    assert not (tmp_path / "ran").exists()
    assert "model.logit_scale" in state
    torch.load(tmp_path / "trapped.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # so the trap works


def test_a_state_dict_is_as_good_and_another_module_is_refused(tmp_path) -> None:
    torch.save(tiny(torch.float32).state_dict(), tmp_path / "state.pth")
    assert convert_mps(tmp_path / "state.pth", tmp_path / "mps", config=TINY).inert == []
    torch.save(nn.Linear(2, 2), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="missing"):
        convert_mps(tmp_path / "other.pth", tmp_path / "other", config=TINY)
    assert not (tmp_path / "other").exists()


def test_files_without_tensors_are_refused_in_words(tmp_path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(PickleError, match="no tensors under names"):
        state_of_pickle(tmp_path / "list.pth")
    (tmp_path / "noise.pth").write_bytes(b"no pickle at all")
    with pytest.raises(PickleError, match=r"noise\.pth"):
        state_of_pickle(tmp_path / "noise.pth")
    with pytest.raises(FileNotFoundError):
        state_of_pickle(tmp_path / "absent.pth")


def test_the_command_says_what_is_wrong(tmp_path, capsys) -> None:
    assert main([str(tmp_path / "absent.pth"), str(tmp_path / "out")]) == 2
    assert "convert-mps: no file" in capsys.readouterr().err
