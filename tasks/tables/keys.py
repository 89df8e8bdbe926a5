"""Names of results. A result is called after all that decides its content, so a file that exists is a result that is
known: OUT/steps/<step>/<shard>-<key>.parquet.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from tasks.tables import storage

UNFINISHED = "~"  # in a key: nobody looks for such a name, so what is in it is made again by the next run


def key_of(*parts: Any) -> str:
    """A short hash (16 hex digits) of JSON-able values and configs, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"a {type(value).__name__} cannot be part of a key")


def root_of(table: str) -> str:
    """The output folder OUT of a step's table OUT/steps/<step>/<shard>-<key>.parquet."""
    return table.rsplit("/", 3)[0]


def shard_of(table: str) -> str:
    """The name of the shard whose table this is."""
    return table.rsplit("/", 1)[1].rsplit("-", 1)[0]


def step_of(table: str) -> str:
    """The name of the folder of the step that wrote a table."""
    return table.rsplit("/", 2)[1]


def folder_of(step: str) -> str:
    """The name of a step as a folder."""
    return re.sub(r"\W+", "-", step)


def key_in(table: str) -> str:
    """The key in a result's name."""
    return table.rsplit("-", 1)[1].removesuffix(".parquet")


def result_uri(needs: Sequence[str], step: str, *decides: Any) -> str:
    """Where ``step`` keeps what it makes of the tables ``needs`` of one shard; ``decides`` is what else its content
    depends on: its config, its version, the hash of its weights."""
    key = key_of(step, [key_in(table) for table in needs], *decides)
    return storage.join(root_of(needs[0]), "steps", folder_of(step), f"{shard_of(needs[0])}-{key}.parquet")


def unfinished(uri: str) -> str:
    """Another name, which is never found again, for a result that misses something for a passing reason."""
    return f"{uri.removesuffix('.parquet')}{UNFINISHED}{uuid.uuid4().hex[:8]}.parquet"
