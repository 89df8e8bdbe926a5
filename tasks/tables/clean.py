"""Collect dead keys: results and frame stores of OUT that the last finished run did not use.

A result is called after all that decides its content, so every changed setting leaves the results of the old one
behind: they would be found again if it were changed back. OUT/steps/used.json says what the last run read or wrote,
relative to OUT; what it does not name, and what has the form of our names, is removed.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from media.paths import fs_of
from tasks.tables import storage
from tasks.tables.amounts import size
from tasks.tables.checks import PreflightError
from tasks.tables.lock import holding
from tasks.tables.owner import read_mark

USED = "steps/used.json"

# steps/<step>/<shard>-<key>.parquet, also of an unfinished result and of parts; frames/<source>-<settings>/<file>.
# Where a run was killed while it wrote a file, its name begins with a dot and ends in _LEFT.
_LEFT = r"\.[0-9a-f]{8}\.partial"
_RESULT = re.compile(rf"steps/([^/]+)/[^/]+-[0-9a-f]{{16}}(~[0-9a-f]+)?(\.part\d+)?\.(parquet|json)({_LEFT})?")
_PART = re.compile(r"(.+-[0-9a-f]{16})\.part\d+\.parquet")
_FRAMES = re.compile(rf"(frames/[0-9a-f]+-[0-9a-f]+)/\.?(samples\.parquet|track\.parquet|source\.json)({_LEFT})?")


@dataclass
class Cleaned:
    """Files and bytes that were removed (of a dry run: would be), by step, and bytes that stay."""

    files: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    kept_bytes: int = 0
    dry_run: bool = False

    def __str__(self) -> str:
        """A line a step, the largest first, and one for all."""
        lines = [
            f"{step:<16} {self.files[step]:>7} files {size(self.bytes[step]):>10}"
            for step in sorted(self.bytes, key=lambda step: (-self.bytes[step], step))
        ]
        done = "would be removed" if self.dry_run else "removed"
        files, freed = sum(self.files.values()), size(sum(self.bytes.values()))
        total = f"{files} files with {freed} {done}; {size(self.kept_bytes)} in use"
        return "\n".join([*lines, total])


def clean(root: str, dry_run: bool = False) -> Cleaned:
    """Remove the results and frame stores below ``root`` that the last finished run did not use.

    Files whose names have not the form of ours stay, whatever they are. Raises PreflightError where ``root`` is no
    output of a curation, no run has finished there, the last one failed in part, or one is running.
    """
    if read_mark(root) is None:
        raise PreflightError(f"{root!r} is no output of a curation: it has no mark")
    with holding(root):
        tables, frames = _used(root)
        fs, folder = fs_of(root)
        folder = folder.rstrip("/")
        fs.invalidate_cache()
        cleaned = Cleaned(dry_run=dry_run)
        for part in ("steps", "frames"):
            for path, info in sorted(fs.find(f"{folder}/{part}", detail=True).items()):
                name = path[len(folder) :].lstrip("/")
                if (step := _dead(name, tables, frames)) is None:
                    cleaned.kept_bytes += int(info["size"] or 0)
                    continue
                cleaned.files[step] += 1
                cleaned.bytes[step] += int(info["size"] or 0)
                if not dry_run:
                    fs.rm_file(path)
                    _remove_empty_folder(fs, path)
        return cleaned


def _used(root: str) -> tuple[set[str], set[str]]:
    """The tables and frame stores that the last finished run used, relative to ``root``."""
    uri = storage.join(root, USED)
    if not storage.exists(uri):
        raise PreflightError(f"{root!r} has no {USED}: no run has finished there, so nothing is known to be dead")
    try:
        used = storage.read_json(uri)
        tables, frames = set(used["tables"]), {folder.rstrip("/") for folder in used["frames"]}
        whole = used.get("whole", True)
    except (OSError, KeyError, TypeError, AttributeError) as problem:
        raise PreflightError(f"{uri} cannot be read: {problem}") from problem
    if not whole:
        raise PreflightError(
            f"the last run in {root!r} failed in part, and what its failed shards have done is not known: run it again "
            "first, or all of that would be removed"
        )
    return tables, frames


def _dead(name: str, tables: set[str], frames: set[str]) -> str | None:
    """What a file below OUT belongs to, if it is ours and of no use any more: its step, or ``frames``."""
    if (result := _RESULT.fullmatch(name)) and name not in tables:
        # Parts of a result that was left unfinished are where the next run goes on.
        part = _PART.fullmatch(name)
        return None if part and any(table.startswith(f"{part[1]}~") for table in tables) else result[1]
    if (store := _FRAMES.fullmatch(name)) and (store[1] not in frames or name.endswith(".partial")):
        return "frames"
    return None


def _remove_empty_folder(fs: Any, path: str) -> None:
    """Remove the folder of a removed file where nothing is left in it. Object stores have none."""
    folder = path.rsplit("/", 1)[0]
    if "file" in fs.protocol and not fs.ls(folder):
        fs.rmdir(folder)
