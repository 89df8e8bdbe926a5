"""The published weights that networks need: their names, their files, where they are looked for, what brings them.

A checkpoint is looked for in the weights folder (``CONTENTV_WEIGHTS``, or the one that a run is given) under its name
here, then in the cache of Hugging Face. Nothing is fetched and nothing stands in for what is missing: a preflight asks
``missing`` for all that a run needs, and prints one command for each.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER_VARIABLE = "CONTENTV_WEIGHTS"
DEFAULT_FOLDER = "weights"  # beside where the run was started
UNIMATCH = "https://s3.eu-central-1.amazonaws.com/avg-projects/unimatch/pretrained"
LAION = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main"


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they are published.

    Attributes:
        name: of its folder in the weights folder, and in settings.
        title: the official name.
        files: all that must be there, relative to its folder; of an index of shards, these too.
        form: the format of the files, and what reads them.
        licence: as its publisher states it, or where it is stated.
        repository: on Hugging Face, as owner/name; empty where it is not published there.
        url: of the only file, where it is not.
        whole: the whole repository is brought, as the files have numbers or names that only it knows.
    """

    name: str
    title: str
    files: tuple[str, ...]
    form: str
    licence: str
    repository: str = ""
    url: str = ""
    whole: bool = False

    def command(self, folder: Path) -> str:
        """The one shell command that brings it into the weights folder."""
        place = folder / self.name
        if self.repository:
            files = "" if self.whole else f" {' '.join(self.files)}"
            return f"hf download {self.repository}{files} --local-dir '{place}'"
        return f"curl --fail --location --create-dirs --output '{place / self.files[0]}' '{self.url}'"


_QWEN = (
    ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors.index.json"),
    "Hugging Face folder, safetensors",
)

CHECKPOINTS: dict[str, Checkpoint] = {
    each.name: each
    for each in (
        Checkpoint(
            "gmflow",
            "GMFlow-scale1-mixdata",
            ("gmflow-scale1-mixdata-train320x576-4c3a6e9a.pth",),
            "state dict of torch.save under 'model', read with weights_only",
            "Apache-2.0 (GMFlow) and MIT (unimatch, which publishes the file): see both repositories",
            url=f"{UNIMATCH}/gmflow-scale1-mixdata-train320x576-4c3a6e9a.pth",
        ),
        Checkpoint(
            "gmflow-refine",
            "GMFlow-scale2-mixdata",
            ("gmflow-scale2-mixdata-train320x576-9ff1c094.pth",),
            "state dict of torch.save under 'model', read with weights_only",
            "Apache-2.0 (GMFlow) and MIT (unimatch, which publishes the file): see both repositories",
            url=f"{UNIMATCH}/gmflow-scale2-mixdata-train320x576-9ff1c094.pth",
        ),
        Checkpoint(
            "clip",
            "ViT-L-14-quickgelu, openai",
            ("open_clip_config.json", "open_clip_model.safetensors"),
            "open_clip's folder, safetensors",
            "MIT: see OpenAI's CLIP and the model's page",
            repository="timm/vit_large_patch14_clip_224.openai",
        ),
        Checkpoint(
            "aesthetic",
            "sac+logos+ava1-l14-linearMSE",
            ("sac+logos+ava1-l14-linearMSE.pth",),
            "state dict of torch.save, read with weights_only",
            "Apache-2.0",
            url=f"{LAION}/sac%2Blogos%2Bava1-l14-linearMSE.pth",
        ),
        Checkpoint(
            "videoclip-xl",
            "VideoCLIP-XL",
            ("VideoCLIP-XL.bin",),
            "state dict of torch.save, read with weights_only",
            "stated on the model's page",
            repository="alibaba-pai/VideoCLIP-XL",
        ),
        Checkpoint(
            "videoalign",
            "VideoReward",
            ("model_config.json",),
            "adapter in safetensors, the rest a state dict of torch.save read with weights_only",
            "Apache-2.0",
            repository="KwaiVGI/VideoReward",
            whole=True,
        ),
        Checkpoint(
            "videoalign-base", "Qwen2-VL-2B-Instruct", *_QWEN, "Apache-2.0", "Qwen/Qwen2-VL-2B-Instruct", whole=True
        ),
        Checkpoint(
            "caption-7b", "Qwen2.5-VL-7B-Instruct", *_QWEN, "Apache-2.0", "Qwen/Qwen2.5-VL-7B-Instruct", whole=True
        ),
        Checkpoint(
            *("caption-72b", "Qwen2.5-VL-72B-Instruct", *_QWEN),
            "Qwen licence: see the model's page",
            "Qwen/Qwen2.5-VL-72B-Instruct",
            whole=True,
        ),
    )
}


def weights_folder(folder: str | Path | None = None) -> Path:
    """The folder that a run is given, else that of ``CONTENTV_WEIGHTS``, else ``weights`` where it was started."""
    return Path(folder or os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)


def find(name: str, folder: str | Path | None = None) -> dict[str, Path] | None:
    """The files of a checkpoint by their names, all from one place; None where no place has all of them.

    KeyError: there is no checkpoint of that name; says which there are.
    """
    known = _known(name)
    own = weights_folder(folder) / name
    found, lacks = _files(known, lambda file: own / file if (own / file).is_file() else None)
    return _in_cache(known) if lacks else found


def located(name: str, folder: str | Path | None = None) -> Path:
    """Where a checkpoint lies: its only file, or the folder of its files. FileNotFoundError with what brings it."""
    files = find(name, folder)
    if files is None:
        raise FileNotFoundError("\n".join(missing([name], folder)))
    first = next(iter(files))
    return files[first] if len(files) == 1 else files[first].parents[first.count("/")]


def missing(names: Sequence[str], folder: str | Path | None = None) -> list[str]:
    """A message for every checkpoint that is not there: what it is, where it was looked for, and what brings it."""
    return [_message(_known(name), weights_folder(folder)) for name in dict.fromkeys(names) if not find(name, folder)]


def hash_of(name: str, folder: str | Path | None = None) -> str:
    """Hash of a checkpoint's files (32 hex digits): part of the key of every result that they make.

    A file is read once in a process, and again when its size or time of change is another. FileNotFoundError as
    ``located``.
    """
    files = find(name, folder)
    if files is None:
        raise FileNotFoundError("\n".join(missing([name], folder)))
    whole = hashlib.sha256()
    for file, path in sorted(files.items()):
        whole.update(f"{file}\0{hash_of_file(path)}\0".encode())
    return whole.hexdigest()[:32]


def hash_of_file(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    target = Path(path).resolve()
    state = target.stat()
    key = str(target), state.st_size, state.st_mtime_ns
    if key not in _HASHES:
        with target.open("rb") as content:
            _HASHES[key] = hashlib.file_digest(content, "sha256").hexdigest()
    return _HASHES[key]


_HASHES: dict[tuple[str, int, int], str] = {}


def _known(name: str) -> Checkpoint:
    if name not in CHECKPOINTS:
        raise KeyError(f"no weights are called {name!r}; there are {', '.join(sorted(CHECKPOINTS))}")
    return CHECKPOINTS[name]


def _files(known: Checkpoint, look: Callable[[str], Path | None]) -> tuple[dict[str, Path], list[str]]:
    """The files of a checkpoint that ``look`` finds, shards among them, and the names of those it does not."""
    wanted, found, lacks = list(known.files), dict[str, Path](), list[str]()
    for file in wanted:  # which grows by the shards of an index
        path = look(file)
        if path is None:
            lacks.append(file)
            continue
        found[file] = path
        if file.endswith(".index.json"):
            shards = set(json.loads(path.read_text())["weight_map"].values())
            wanted.extend(sorted(str(Path(file).with_name(shard)) for shard in shards))
    return found, lacks


def _in_cache(known: Checkpoint) -> dict[str, Path] | None:
    """The files in one snapshot of Hugging Face's cache. None: not all are there."""
    if not known.repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    def look(file: str) -> Path | None:
        path = try_to_load_from_cache(known.repository, file)
        return Path(path) if isinstance(path, str) else None

    found, lacks = _files(known, look)
    return None if lacks else found


def _message(known: Checkpoint, folder: Path) -> str:
    own = folder / known.name
    _, lacks = _files(known, lambda file: own / file if (own / file).is_file() else None)
    places = f"{own}" + (f" and Hugging Face's cache of {known.repository}" if known.repository else "")
    return (
        f"{known.name} ({known.title}; licence: {known.licence}) is not there: {', '.join(lacks)} looked for in "
        f"{places}. This brings it: {known.command(folder)}"
    )
