"""The facts of a run: what makes it this run and no other. Its checkpoints and its result carry them.

Facts are a dictionary of what JSON has: ``recipe``, ``seed``, ``manifest``, ``weights`` (where it started),
``encoder``, ``model``, ``branch_from``; and for one checkpoint ``step``, ``loss`` and ``layout``.
"""

import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from models.checkpoint import CheckpointError
from models.transformer import TransformerConfig
from training.checkpoint.files import sync_folder, write_bytes
from training.recipe import Phase, Recipe

FACTS = "facts.json"
OF_A_CHECKPOINT = ("step", "loss", "layout", "index_crc32")  # not of the run: others may go on from it
UNKNOWN_BEFORE = ("weights", "encoder")  # checkpoints of earlier releases do not have them
BRANCHES = ("learning_rate", "warmup_steps", "clip_norm", "phases", "name")  # of the recipe, what a branch may change
CHECKSUM = "crc32"

_log = logging.getLogger(__name__)


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts in a folder. CheckpointError: there are none, or they cannot be read or are not what was written."""
    try:
        facts = json.loads((folder / FACTS).read_text())
        if not isinstance(facts, dict):
            raise ValueError(f"{FACTS} holds no facts")
        if facts.pop(CHECKSUM, None) not in (None, _checksum(facts)):  # earlier releases left none
            raise ValueError(f"{FACTS} is damaged: its checksum is another")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is no checkpoint of a run: {error}") from error
    return facts


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Leave facts in a folder, on the disk, with a checksum of their own."""
    content = plain(facts)
    write_bytes(folder / FACTS, json.dumps(content | {CHECKSUM: _checksum(content)}, indent=2).encode())
    sync_folder(folder)


def check_facts(there: Mapping[str, Any], here: Mapping[str, Any], what: object) -> None:
    """CheckpointError if ``what``, with the facts ``there``, is of another run than ``here``; says how they differ.

    A field of the recipe or of the model's size that one of them does not have takes its default.
    """
    differ = dict(differences(there, here))
    if not differ:
        return
    lines = [f"{what} is of another run:", *differ.values()]
    if all(_may_branch(name) for name in differ):
        lines.append("This may change in a branch: name the checkpoint as branch_from, and choose another output")
    raise CheckpointError("\n".join(lines))


def changed_by_branch(there: Mapping[str, Any], here: Mapping[str, Any], what: object) -> dict[str, list[Any]]:
    """The fields of the recipe that a branch changes, each with its value ``there`` and ``here``.

    CheckpointError: more differs than a branch may change.
    """
    own = {name: value for name, value in here.items() if name != "branch_from"}
    differ = dict(differences(there, own))
    if more := [line for name, line in differ.items() if not _may_branch(name)]:
        may = ", ".join(BRANCHES)
        raise CheckpointError("\n".join([f"{what} cannot be branched from: a branch may change {may}, but", *more]))
    recipes = _filled(there["recipe"], Recipe), _filled(plain(here)["recipe"], Recipe)
    changed = dict.fromkeys(name.split(".")[1] for name in differ)
    return {name: [recipe.get(name) for recipe in recipes] for name in changed}


def run_digest(facts: Mapping[str, Any]) -> str:
    """Names the run that has these facts, in 16 letters."""
    own = {name: value for name, value in plain(facts).items() if name not in OF_A_CHECKPOINT}
    return sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as they are when they are read again."""
    found: dict[str, Any] = json.loads(json.dumps(dict(facts)))
    return found


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each fact of the run that differs: its name, such as ``recipe.fps``, and a line of words."""
    here = plain(here)
    for name in here:
        if name in OF_A_CHECKPOINT:
            continue
        if name in UNKNOWN_BEFORE and name not in there:
            _log.warning("an earlier release left no fact %r, so it is not compared", name)
            continue
        yield from _differences(name, _with_defaults(name, there.get(name)), _with_defaults(name, here[name]))


def _differences(name: str, there: Any, here: Any) -> Iterator[tuple[str, str]]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from _differences(f"{name}.{key}", there.get(key), here.get(key))
    elif there != here:
        yield name, f"  {name} is {there!r} there and {here!r} here"


def _may_branch(name: str) -> bool:
    return name.startswith("recipe.") and name.split(".")[1] in BRANCHES


def _with_defaults(name: str, value: Any) -> Any:
    if name == "recipe":
        return _filled(value, Recipe)
    if name == "model" and isinstance(value, dict):
        return {f.name: f.default for f in fields(TransformerConfig) if f.default is not MISSING} | value
    return value


def _filled(value: Any, model: type[BaseModel]) -> Any:
    """A recipe, or a phase of one, as an upgrade reads it: fields that it does not have are at their defaults."""
    if not isinstance(value, dict):
        return value
    defaults = {name: field.default for name, field in model.model_fields.items() if not field.is_required()}
    filled: dict[str, Any] = to_jsonable_python(defaults) | value
    if isinstance(phases := filled.get("phases"), list):
        filled["phases"] = [_filled(phase, Phase) for phase in phases]
    return filled


def _checksum(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())
