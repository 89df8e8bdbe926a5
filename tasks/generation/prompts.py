"""Prompts: typed in, from a file, or from the captions of a manifest; and the batches in which they are worked on.

.txt            one prompt a line; empty lines are passed over
.jsonl          one object a line: {"prompt": "...", "seed": 7}, the seed optional
.csv            with a header: a column prompt, and optionally seed
.parquet        columns prompt and optionally seed; or those of a manifest
anything else   a folder, as curation writes OUT/manifest: its captions, in the order of its files
"""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from media.paths import fs_of
from tasks.tables import storage
from tasks.tables.checks import PreflightError, check_place
from tasks.tables.keys import key_of
from tasks.tables.sources import extension

Caption = Literal["caption_detailed", "caption_short"]

LARGEST_SEED = 2**63 - 1
SLUG_LENGTH = 40

REQUESTS = pa.schema(
    [
        pa.field("index", pa.int64(), metadata={"meaning": "place among the run's videos, from 0"}),
        pa.field("prompt", pa.string(), metadata={"meaning": "what the video is to show"}),
        pa.field("seed", pa.int64(), metadata={"meaning": "seed of the noise that the video is made from"}),
    ]
)


@dataclass(frozen=True)
class Prompt:
    """A prompt, and its seed where one was given with it."""

    text: str
    seed: int | None = None


def read_prompts(uri: str, caption: Caption = "caption_detailed", limit: int | None = None) -> list[Prompt]:
    """The prompts of a file or manifest, at most the first ``limit``.

    Raises PreflightError where there is nothing to read, and for a bad line, with its number.
    """
    check_place(uri, "prompts_from")
    fs, path = fs_of(uri)
    if not fs.exists(path):
        raise PreflightError(f"prompts_from {uri!r} does not exist; a prompt itself goes into 'prompts'")
    if fs.isdir(path):
        found = _of_manifest(uri, caption)
    else:
        kind = extension(uri)
        if kind not in READERS:
            raise PreflightError(f"prompts_from {uri!r} is no {', '.join(READERS)} file and no manifest's folder")
        found = READERS[kind](uri, caption)
    prompts = list(islice(found, limit))
    if not prompts:
        raise PreflightError(f"prompts_from {uri!r} holds no prompt")
    return prompts


def _lines(uri: str) -> Iterator[tuple[str, str]]:
    """Lines that are not empty, each with where it is."""
    fs, path = fs_of(uri)
    with fs.open(path, "r", encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{uri}, line {number}", line.strip()
        except UnicodeDecodeError as problem:
            raise PreflightError(f"{uri} is no UTF-8 text: {problem}") from problem


def _of_text(uri: str, caption: Caption) -> Iterator[Prompt]:
    for _, line in _lines(uri):
        yield Prompt(line)


def _of_jsonl(uri: str, caption: Caption) -> Iterator[Prompt]:
    for place, line in _lines(uri):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as problem:
            raise PreflightError(f"{place}: no JSON: {problem}") from problem
        yield _prompt(entry if isinstance(entry, dict) else {}, place)


def _of_csv(uri: str, caption: Caption) -> Iterator[Prompt]:
    fs, path = fs_of(uri)
    with fs.open(path, "r", encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(io.StringIO(file.read()))
    header = [name.strip() for name in reader.fieldnames or []]
    if header.count("prompt") != 1 or header.count("seed") > 1:
        raise PreflightError(
            f"{uri}, line 1: the header names one column prompt, and seed at most once, not {', '.join(header)}"
        )
    reader.fieldnames = header
    for entry in reader:
        if None in entry:
            raise PreflightError(f"{uri}, line {reader.line_num}: more fields than columns; put a prompt in quotes")
        yield _prompt(entry, f"{uri}, line {reader.line_num}")


def _of_parquet(uri: str, caption: Caption) -> Iterator[Prompt]:
    table = storage.read_table(uri)
    column = "prompt" if "prompt" in table.column_names else caption
    if column not in table.column_names:
        raise PreflightError(f"{uri} has neither a column prompt nor {caption}: it has {', '.join(table.column_names)}")
    for number, entry in enumerate(table.select([c for c in (column, "seed") if c in table.column_names]).to_pylist()):
        yield _prompt({"prompt": entry[column], "seed": entry.get("seed")}, f"{uri}, row {number}, {column}")


def _of_manifest(uri: str, caption: Caption) -> Iterator[Prompt]:
    for table in storage.list_below(uri):
        if table.endswith(".parquet"):
            yield from _of_parquet(table, caption)


READERS = {".txt": _of_text, ".jsonl": _of_jsonl, ".csv": _of_csv, ".parquet": _of_parquet}


def _prompt(entry: Mapping[str, Any], place: str) -> Prompt:
    text, seed = entry.get("prompt"), entry.get("seed")
    if not isinstance(text, str) or not text.strip():
        raise PreflightError(f"{place}: there is no prompt")
    if seed is None or seed == "" or (isinstance(seed, float) and math.isnan(seed)):  # NaN: a gap in a table of floats
        return Prompt(text.strip())
    try:
        return Prompt(text.strip(), checked_seed(_whole(seed)))
    except ValueError as problem:
        raise PreflightError(f"{place}: seed {seed!r} is no whole number from 0 to 2^63 - 1") from problem


def _whole(seed: object) -> int:
    """A seed as it was written. A float, as tables with gaps have, has to be a whole number that it holds exactly."""
    if isinstance(seed, str) or (isinstance(seed, int) and not isinstance(seed, bool)):
        return int(seed)
    if isinstance(seed, float) and seed.is_integer() and abs(seed) < 2**53:
        return int(seed)
    raise ValueError(f"{seed!r} is no whole number")


def checked_seed(seed: int) -> int:
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed {seed} is not from 0 to 2^63 - 1")
    return seed


def requests(prompts: Sequence[Prompt], seed: int, videos_per_prompt: int) -> list[dict[str, Any]]:
    """The videos to make: each prompt ``videos_per_prompt`` times, with its own seed or ``seed``, and those after it.

    A seed does not depend on the prompt's place, so a prompt that is added changes no other prompt's videos.
    """
    wanted = [
        (prompt.text, checked_seed((seed if prompt.seed is None else prompt.seed) + take))
        for prompt in prompts
        for take in range(videos_per_prompt)
    ]
    return [{"index": index, "prompt": text, "seed": own} for index, (text, own) in enumerate(wanted)]


def write_batches(wanted: Sequence[dict[str, Any]], root: str, size: int) -> list[str]:
    """Write the requests as tables of ``size`` rows under OUT/steps/prompts; returns their URIs."""
    tables: list[str] = []
    for start in range(0, len(wanted), size):
        batch = wanted[start : start + size]
        uri = storage.join(root, "steps", "prompts", f"{start:05d}-{key_of(batch)}.parquet")
        if not storage.exists(uri):
            storage.write_table(pa.Table.from_pylist(batch, schema=REQUESTS), uri)
        tables.append(uri)
    return tables


def slug(prompt: str) -> str:
    """A prompt as part of a file name: its lower-case ASCII words, at most 40 characters; "" where there are none."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:SLUG_LENGTH].strip("-")


def video_name(index: int, prompt: str, seed: int) -> str:
    """``<index>-<slug>-<seed>.mp4``."""
    return "-".join([f"{index:05d}", *filter(None, [slug(prompt)]), str(seed)]) + ".mp4"
