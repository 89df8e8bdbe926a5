"""Input lists: sources named by a table (.csv, .parquet, .jsonl), whose other columns pass through to the manifest."""

import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from media.paths import UnusablePath, fs_of, is_local, path_of_uri, protocol_of
from tasks.tables.checks import PreflightError
from tasks.tables.folders import local_file
from tasks.tables.found import PASSED, ROWS_AT_ONCE, Found, Source, table_of, token, version_of

LISTS = {".csv", ".parquet", ".jsonl"}

# What the column of URIs may be called.
URI_COLUMNS = ("source_uri", "uri", "url", "path", "video")

# Requests side by side that ask stores about listed objects.
REQUESTS = 32

_NARROW = b"narrow"


def read_list(uri: str) -> Found:
    """The sources that a list names: one row each, in order of URI, with all other columns of the list.

    The column of URIs is called as one of URI_COLUMNS. A path that is not absolute starts at the list's own folder.
    Every file is taken, whatever its extension; one that is not there, or is no ordinary file, is a source of 0 bytes,
    so that the scan gives it a row with its error. Of rows with one URI the first counts; rows without are passed over.

    Columns of .parquet and .jsonl keep their types; those of .csv are text, as nothing says what else they are. A list
    in memory takes its own size besides 50 bytes a row. Local files are asked for size and time of change (some
    microseconds each), objects by a request each, REQUESTS at a time: about a thousand a second.

    Raises PreflightError for a list that cannot be read, or has no column, or two columns, of URIs.
    """
    table = _read(uri)
    column = _uri_column(table.column_names, uri)
    named = pc.and_(table[column].is_valid(), pc.not_equal(pc.utf8_trim_whitespace(table[column]), ""))
    without = table.num_rows - (pc.sum(named).as_py() or 0)
    if without:
        table = table.filter(named)
    if not table.num_rows:
        raise PreflightError(f"source {uri!r} names no file: its column {column!r} is empty")
    sources = pa.concat_tables(table_of(block) for block in _looked_up(table[column], uri))
    passed = _wide_offsets(table.drop_columns([column]))
    for name in passed.column_names:
        sources = sources.append_column(passed.schema.field(name).with_name(PASSED + name), passed[name])
    sources = sources.sort_by("source_uri")
    rows = sources.num_rows
    sources = _first_of_each(sources)
    passed_over = Counter({"rows without a URI": without, "rows of a file listed before": rows - sources.num_rows})
    return Found(sources, +passed_over, dict.fromkeys(passed_over, uri))


def _read(uri: str) -> pa.Table:
    """The list as a table; its column of URIs is text."""
    fs, path = fs_of(uri)
    try:
        with fs.open(path, "rb") as file:
            kind = path.rsplit(".", 1)[-1].lower()
            return {"csv": _read_csv, "parquet": pq.read_table, "jsonl": _read_jsonl}[kind](file)
    except (pa.ArrowException, ValueError, OSError) as problem:
        raise PreflightError(f"source {uri!r} cannot be read as a list: {problem}") from problem


def _read_csv(file: Any) -> pa.Table:
    parse = pacsv.ParseOptions(newlines_in_values=True)
    names = pacsv.open_csv(file, parse_options=parse).schema.names
    file.seek(0)
    text = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    return pacsv.read_csv(file, parse_options=parse, convert_options=text)


def _read_jsonl(file: Any) -> pa.Table:
    """Line by line with Python's reader: Arrow's own makes dates of texts that look like dates."""
    tables, first = [], 1
    while block := list(islice(file, ROWS_AT_ONCE)):
        rows = []
        for number, line in enumerate(block, start=first):
            if line := line.strip().removeprefix(b"\xef\xbb\xbf"):
                try:
                    rows.append(json.loads(line))
                except ValueError as problem:
                    raise ValueError(f"line {number} is no JSON: {problem}") from problem
                if not isinstance(rows[-1], dict):
                    raise ValueError(f"line {number} is no JSON object")
        # Every name of the block: Arrow looks at the first row alone.
        names = dict.fromkeys(name for row in rows for name in row)
        tables.append(pa.table({name: pa.array([row.get(name) for row in rows]) for name in names}))
        first += len(block)
    # A number that is whole in one block and not in another, and a field that only some rows have, are one column.
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def _uri_column(names: Sequence[str], uri: str) -> str:
    """The name of the column of URIs."""
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise PreflightError(f"source {uri!r} has two columns called {doubled[0]!r}")
    found = [name for known in URI_COLUMNS for name in names if name.strip().lower() == known]
    if not found:
        raise PreflightError(
            f"source {uri!r} has no column of URIs, called {', '.join(URI_COLUMNS[:-1])} or {URI_COLUMNS[-1]}; "
            f"it has {', '.join(map(repr, names)) or 'none'}"
        )
    if len(found) > 1 and found[0] != URI_COLUMNS[0]:
        raise PreflightError(
            f"source {uri!r} has the columns {' and '.join(map(repr, found))}: call the one that names the files "
            f"{URI_COLUMNS[0]}"
        )
    return found[0]


def _looked_up(column: pa.ChunkedArray, uri: str) -> Iterator[list[Source]]:
    """The listed files, in order, with what their stores say of them, a block at a time."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise PreflightError(f"source {uri!r}: its column of URIs is of type {column.type}, not text")
    listed_locally = is_local(uri)
    folder = os.path.dirname(path_of_uri(uri)) if listed_locally else ""
    fresh = set[str]()

    def source(name: str) -> Source:
        relative = protocol_of(name) == "file" and not name.startswith(("/", "~/")) and "://" not in name
        if relative and not listed_locally:
            name = _neighbour(uri, name)
        try:
            if not is_local(name):
                return _object(name, fresh)
            local = f"{folder}/{name}" if relative else name if name.startswith("/") else path_of_uri(name)
        except UnusablePath:
            return Source(name, 0, token("unusable"))
        found = local_file(local)
        return found if isinstance(found, Source) else Source(found.uri, 0, token(found.reason))

    with ThreadPoolExecutor(REQUESTS) as pool:
        for start in range(0, len(column), ROWS_AT_ONCE):
            names = column.slice(start, ROWS_AT_ONCE).to_pylist()
            remote = not listed_locally or any("://" in name for name in names)
            yield list(pool.map(source, names) if remote else map(source, names))


def _neighbour(uri: str, name: str) -> str:
    """The URI of the file that lies at the path ``name`` from the folder of the object ``uri``."""
    protocol, _, path = uri.partition("://")
    return f"{protocol}://{posixpath.normpath(posixpath.join(posixpath.dirname(path), name))}"


def _object(uri: str, fresh: set[str]) -> Source:
    """A listed object, asked for by itself. UnusablePath where no store is behind the URI."""
    store, path = fs_of(uri)
    if (protocol := protocol_of(uri)) not in fresh:  # what the store was asked earlier is old
        store.invalidate_cache()
        fresh.add(protocol)
    try:
        info = store.info(path)
    except Exception as problem:  # missing, forbidden, out of reach for now: the scan tells which
        return Source(uri, 0, token(type(problem).__name__))
    return Source(uri, int(info.get("size") or 0), version_of(info))


def _wide_offsets(table: pa.Table) -> pa.Table:
    """Text and bytes with 64-bit offsets, as ten million captions can be more than 2 GiB; ``narrow`` undoes it."""
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    fields = [
        field.with_type(wide[field.type]).with_metadata({**(field.metadata or {}), _NARROW: b"yes"})
        if field.type in wide
        else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def narrow(table: pa.Table) -> pa.Table:
    """The columns with the types that the list had."""
    back = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
    fields = []
    for field in table.schema:
        metadata = dict(field.metadata or {})
        was_narrow = metadata.pop(_NARROW, None)
        field = field.with_type(back[field.type]) if was_narrow else field
        fields.append(field.with_metadata(metadata) if metadata else field.remove_metadata())
    return table.cast(pa.schema(fields))


def _first_of_each(table: pa.Table) -> pa.Table:
    """A sorted table with the first row of each URI."""
    uris = table["source_uri"].combine_chunks()
    new = pc.not_equal(uris.slice(1), uris.slice(0, len(uris) - 1))
    return table.filter(pa.concat_arrays([pa.array([True]), new]))
