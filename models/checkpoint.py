"""Transformer checkpoints in the layout of diffusers: ``config.json`` and safetensors, whole or in indexed shards.

Nothing is read before all keys and shapes are known to fit, from the headers. Weights then go one by one from the file
to a model made on the meta device, so that loading takes the memory of the loaded model, and no more. On the CPU, in
the dtype that is stored, they are mapped: pages are read when they are first used.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from media.naming import first_of
from models.transformer import ContentVTransformer, TransformerConfig

WEIGHTS = "diffusion_pytorch_model"
MAX_SHARD_BYTES = 5_000_000_000
CONFIGS = Path(__file__).with_name("configs")


class CheckpointError(ValueError):
    """A checkpoint is damaged, or its keys or shapes are not the model's; says which."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, by its header; or the named ``rows`` of one, in the order that is wanted."""

    file: Path
    key: str
    shape: tuple[int, ...]
    rows: tuple[slice, ...] = ()

    def take(self, *rows: slice) -> "Stored":
        """Only these rows of the first axis."""
        count = sum(len(range(*part.indices(self.shape[0]))) for part in rows)
        return Stored(self.file, self.key, (count, *self.shape[1:]), rows)


def read_config(source: str | Path) -> TransformerConfig:
    """The size named "8b" or "tiny", or that of a ``config.json``, or of the folder that has one.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is of another architecture.
    """
    named = CONFIGS / f"{source}.json"
    path = named if named.is_file() else Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.json")))
        raise FileNotFoundError(f"no transformer config at {path}; sizes known by name: {known}")
    values: dict[str, Any] = json.loads(path.read_text())
    config = TransformerConfig(**{f.name: values[f.name] for f in fields(TransformerConfig) if f.name in values})
    others = {"qk_norm": "rms_norm", "dual_attention_layers": [], "caption_projection_dim": config.inner_dim}
    for name, value in others.items():
        if values.get(name, value) != value:
            raise CheckpointError(
                f"{path}: {name} is {values[name]!r}, and {value!r} in SD3.5-Large and ContentV. "
                "SD3-Medium and SD3.5-Medium have blocks of another kind"
            )
    return config


def write_config(config: TransformerConfig, path: Path) -> None:
    """Write a ``config.json`` that ``read_config`` and diffusers read."""
    values = json.loads((CONFIGS / "8b.json").read_text()) | asdict(config)
    values["caption_projection_dim"] = config.inner_dim
    if config.position == "absolute":
        del values["position"]  # diffusers does not know it
    path.write_text(json.dumps(values, indent=2) + "\n")


def load_transformer(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> ContentVTransformer:
    """The transformer in a folder that ``save_transformer`` wrote, or of a published ContentV-8B.

    Args:
        folder: ``transformer/`` of a checkpoint, or the folder around it.
        dtype: of the weights in memory; by default as stored.

    Raises:
        FileNotFoundError: the config, the weights or a shard is missing.
        CheckpointError: a file is damaged, or keys or shapes do not fit the config.
    """
    folder = network_folder(folder)
    return build(read_config(folder), stored_tensors(folder), f"checkpoint {folder}", dtype=dtype, device=device)


def network_folder(folder: str | Path) -> Path:
    """``folder/transformer`` if there is one, else ``folder``."""
    folder = Path(folder)
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def stored_tensors(source: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, or of a folder with one or with an index of shards, by their headers.

    Raises:
        FileNotFoundError: there is no such file, or a shard is missing.
        CheckpointError: a file is damaged.
    """
    files = _weight_files(source) if source.is_dir() else [source]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"weights are missing: {first_of(missing)}")
    tensors = {}
    for file in files:
        with _opened(file) as content:
            for key in content.keys():  # noqa: SIM118
                tensors[key] = Stored(file, key, tuple(content.get_slice(key).get_shape()))
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [folder / name for name in sorted(names)]
    whole = folder / f"{WEIGHTS}.safetensors"
    if not whole.is_file():
        there = sorted(file.name for file in folder.glob("*")) if folder.is_dir() else []
        raise FileNotFoundError(
            f"no {whole.name}, nor its index, in {folder}, which has {first_of(there) or 'nothing'}. "
            "Only safetensors are read, in the layout of diffusers"
        )
    return [whole]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except SafetensorError as error:
        raise CheckpointError(f"{file} is cut off or no safetensors file; fetch it again ({error})") from error


def build(
    config: TransformerConfig,
    tensors: Mapping[str, Stored],
    source: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    new: Mapping[str, Tensor] | None = None,
) -> ContentVTransformer:
    """A transformer whose weights are these stored tensors, and ``new`` for those which are not stored.

    Raises:
        CheckpointError: keys or shapes are not the model's. Nothing has been read then.
    """
    with torch.device("meta"):
        model = ContentVTransformer(**asdict(config))
    new = new or {}
    shapes = {key: stored.shape for key, stored in tensors.items()} | {k: tuple(t.shape) for k, t in new.items()}
    check_keys(shapes, {key: tuple(t.shape) for key, t in model.state_dict().items()}, source)
    for file, group in groupby(sorted(tensors.items(), key=lambda item: item[1].file), lambda item: item[1].file):
        with _opened(file) as content:
            state = {name: _read(content, stored).to(device, dtype) for name, stored in group}
        model.load_state_dict(state, strict=False, assign=True)
    model.load_state_dict({k: t.to(device, dtype) for k, t in new.items()}, strict=False, assign=True)
    return model


def _read(content: Any, stored: Stored) -> Tensor:
    if not stored.rows:
        return content.get_tensor(stored.key)
    rows = content.get_slice(stored.key)
    parts = [rows[part] for part in stored.rows]
    return torch.cat(parts)  # a copy even of one part, which would keep the whole tensor alive


def check_keys(found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], source: str) -> None:
    """CheckpointError unless keys and shapes are the same; names the first few that are not, and how many."""
    faults = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in wanted],
        "of another shape": [
            f"{key} is {list(found[key])}, the model's {list(shape)}"
            for key, shape in wanted.items()
            if key in found and tuple(found[key]) != tuple(shape)
        ],
    }
    lines = [f"  {len(keys)} {fault}: {first_of(keys)}" for fault, keys in faults.items() if keys]
    if lines:
        raise CheckpointError("\n".join([f"{source} does not fit the model:", *lines]))


def check_stored(folder: Path, config: TransformerConfig) -> dict[str, Stored]:
    """The tensors in a folder, which are those of a transformer of this size.

    Raises:
        FileNotFoundError: the weights or a shard is missing.
        CheckpointError: a file is damaged, or keys or shapes do not fit. Nothing but headers has been read.
    """
    with torch.device("meta"):
        wanted = ContentVTransformer(**asdict(config)).state_dict()
    stored = stored_tensors(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    check_keys({name: each.shape for name, each in stored.items()}, shapes, f"checkpoint {folder}")
    return stored


def save_transformer(
    model: ContentVTransformer,
    folder: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the model into a new folder, whole or not at all.

    Args:
        state: other weights than the model's own, say an average of them. Keys and shapes must be the model's.
        dtype: of the weights on disk; by default as they are.

    Raises:
        FileExistsError: the folder is there. A checkpoint is never overwritten.
        CheckpointError: ``state`` does not fit.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already, and a checkpoint is never overwritten")
    if state is not None:
        shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
        check_keys({key: tuple(t.shape) for key, t in state.items()}, shapes, "state")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        whole = Path(scratch) / folder.name
        whole.mkdir()
        write_config(model.config, whole / "config.json")
        _write_shards(state or model.state_dict(), whole, dtype, max_shard_bytes)
        os.rename(whole, folder)


def _write_shards(state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype | None, max_bytes: int) -> None:
    shards = _shards({key: t.numel() * (dtype or t.dtype).itemsize for key, t in state.items()}, max_bytes)
    weight_map: dict[str, str] = {}
    for number, keys in enumerate(shards, start=1):
        name = f"{WEIGHTS}-{number:05d}-of-{len(shards):05d}.safetensors"
        name = name if len(shards) > 1 else f"{WEIGHTS}.safetensors"
        weights = {key: state[key].detach().to("cpu", dtype).contiguous() for key in keys}
        save_file(weights, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(keys, name)
    if len(shards) > 1:
        total = sum(t.numel() * (dtype or t.dtype).itemsize for t in state.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Keys, in order, in the fewest groups that greedily fit; a tensor larger than a group has its own."""
    shards: list[list[str]] = []
    filled = 0
    for key, size in sizes.items():
        if not shards or filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards
