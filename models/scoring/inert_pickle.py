"""Reads the tensors of a pickled PyTorch module without running anything that the pickle names.

Some checkpoints are whole modules, pickled: ``torch.load(weights_only=True)`` refuses them, and without it the file
runs as a program. Here tensors are rebuilt by PyTorch's own functions, and every other class or function that the file
names becomes an inert thing that only keeps what was stored in it. ``state_of_pickle`` does so in a process of its own,
with an empty environment, which a hook of the interpreter stops from opening sockets, starting programs, or writing any
file but the result. This file is that process's program, so it imports nothing of ours.
"""

import json
import pickle
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SECONDS = 1800.0

# What rebuilds tensors, and nothing else: no function here can do more than make a tensor or a container.
_REBUILD = {
    ("collections", "OrderedDict"),
    ("__builtin__", "set"),  # as protocol 2 calls it
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.serialization", "_get_layout"),
}
_STORAGES = {
    f"{name}Storage"
    for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "Untyped")
}


class PickleError(ValueError):
    """A file is no pickled module or state dict with tensors, or could not be read in the time given."""


def state_of_pickle(file: str | Path, *, seconds: float = SECONDS) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a pickled module or state dict by their keys, and the names in the file that were left inert.

    Raises:
        FileNotFoundError: there is no such file.
        PickleError: the file holds no tensors under names, is damaged, or takes longer than ``seconds``.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "state.safetensors"
        command = [sys.executable, "-I", "-B", __file__, str(file.resolve()), str(result)]
        try:
            process = subprocess.run(command, env={}, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise PickleError(f"{file}: not read in {seconds:.0f} s") from None
        if process.returncode or not result.is_file():
            reason = process.stderr.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
            raise PickleError(f"{file} is no pickled module that can be read safely: {reason[0]}")
        return load_file(result), json.loads(process.stdout.strip().splitlines()[-1])


class _Inert:
    """Stands for an object of any class: it keeps its state, and does nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    inert: set[str] = set()  # noqa: RUF012

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILD or (module in ("torch", "torch.storage") and name in _STORAGES):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        self.inert.add(f"{module}.{name}")
        return type(name, (_Inert,), {"__module__": module})


def _load(stream: Any, **named: Any) -> Any:
    return _Unpickler(stream, **named).load()


def _tensors(thing: Any, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of an inert module, or of a dict of tensors."""
    if isinstance(thing, dict):
        return {key: value for key, value in thing.items() if isinstance(key, str) and isinstance(value, Tensor)}
    values = getattr(thing, "__dict__", {})
    passing = values.get("_non_persistent_buffers_set", set())
    found = dict(values.get("_parameters", {}))
    found |= {name: value for name, value in values.get("_buffers", {}).items() if name not in passing}
    state = {prefix + name: value for name, value in found.items() if isinstance(value, Tensor)}
    for name, part in values.get("_modules", {}).items():
        state |= _tensors(part, f"{prefix}{name}.") if part is not None else {}
    return state


def _forbid(result: str) -> None:
    """Stop this process from doing anything but reading files and writing ``result``; it cannot be undone."""
    forbidden = (
        "socket.",
        "subprocess.",
        "os.system",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "ctypes.",
        "os.remove",
        "os.rename",
        "os.link",
        "os.symlink",
        "os.chmod",
    )

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event.startswith(forbidden) or (writes and arguments[0] != result):
            raise PermissionError(f"reading a pickle tried {event}")

    sys.addaudithook(hook)


def _main(file: str, result: str) -> None:
    module = SimpleNamespace(__name__="inert_pickle", Unpickler=_Unpickler, load=_load, UnpicklingError=Exception)
    _forbid(result)
    thing = torch.load(file, map_location="cpu", weights_only=False, pickle_module=module)
    state = _tensors(thing)
    if not state:
        raise PickleError("it holds no tensors under names")
    save_file(OrderedDict((key, value.detach().clone().contiguous()) for key, value in state.items()), result)
    print(json.dumps(sorted(_Unpickler.inert)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
