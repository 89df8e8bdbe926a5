"""What a search for sources finds: a table of them, and what was passed over.

A table of sources has one row a file, sorted by URI: ``source_uri``, ``bytes`` and ``version``, a token that changes
when the file does. What an input list says besides (licence, caption, tags ...) stands in further columns, whose names
begin with ``PASSED``. Text columns have 64-bit offsets, as ten million paths can be more than 2 GiB.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

# Before the name of a column that an input list brings: it can then have the name of one of these.
PASSED = "+"

SCHEMA = pa.schema([("source_uri", pa.large_string()), ("bytes", pa.int64()), ("version", pa.string())])

ROWS_AT_ONCE = 65_536

# What file systems of fsspec call the hash or generation of an object's content, and the time of its last change.
_CONTENT = ("ETag", "etag", "generation", "VersionId", "version_id", "md5Hash", "content_md5", "checksum")
_TIME = ("LastModified", "last_modified", "updated", "mtime", "modified", "created", "timeCreated")


class Source(NamedTuple):
    """One file: where it is, its size, and the token that changes when it does."""

    uri: str
    bytes: int
    version: str


class PassedOver(NamedTuple):
    """Something that is no source, and why: the plural of what it is, as ``hidden files``."""

    uri: str
    reason: str


@dataclass(frozen=True)
class Found:
    """The sources, and how many other things were passed over, by reason, with an example of each."""

    sources: pa.Table
    passed_over: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line for the log."""
        others = [f"{count} {reason} ({self.examples[reason]!r})" for reason, count in self.passed_over.most_common()]
        return f"{self.sources.num_rows} sources" + (f"; passed over: {', '.join(others)}" if others else "")


def gather(entries: Iterable[Source | PassedOver]) -> Found:
    """The table of the sources among ``entries``, sorted by URI, and the count of the others."""
    passed, examples = Counter[str](), dict[str, str]()

    def sources() -> Iterator[Source]:
        for entry in entries:
            if isinstance(entry, Source):
                yield entry
            else:
                passed[entry.reason] += 1
                examples.setdefault(entry.reason, entry.uri)

    found = sources()
    tables = []
    while block := list(islice(found, ROWS_AT_ONCE)):
        tables.append(table_of(block))
    return Found(pa.concat_tables([SCHEMA.empty_table(), *tables]).sort_by("source_uri"), passed, examples)


def total_bytes(sources: pa.Table) -> int:
    """The size of all sources together."""
    return int(pc.sum(sources["bytes"]).as_py() or 0)


def table_of(sources: Sequence[Source]) -> pa.Table:
    """A table of sources with no passed columns."""
    columns = [[source[place] for source in sources] for place in range(len(SCHEMA))]
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


def token(*parts: Any) -> str:
    """A change token: a hash of what a file system says of a file."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def version_of(info: dict[str, Any]) -> str:
    """The change token of an object, from what its store says of it: its size and the hash or generation of its
    content; where the store tells neither, the time of its last change."""
    content = [str(info[name]) for name in _CONTENT if info.get(name)]
    times = [str(info[name]) for name in _TIME if info.get(name)]
    return token(info.get("size"), content or times)
