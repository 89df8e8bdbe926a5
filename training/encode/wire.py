"""Encoded samples as Arrow: how they travel from an encode server, and how a batch lies in a buffer's file.

A record batch is one sample, so a server sends each as soon as it is encoded. Its tensors are raw little-endian bytes
beside their shape and dtype, bfloat16 too, and the schema's metadata says which answer it is a part of. Neither side
copies the bytes, except where they arrive at an address that their numbers cannot have. Nothing is ever unpickled.
"""

import hashlib
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from training.data.plan import Job
from training.encode.encoder import Encoded, Text
from training.encode.reading import BadClip

if sys.byteorder != "little":
    raise ImportError("tensors travel in little-endian order, which is not this machine's")

FORMAT = "2"
TENSORS = ("latents", "tokens", "pooled")
TEXT = ("tokens", "pooled")
COUNTS = ("cut_t5", "cut_clip")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TICKET_BYTES = 64 * 1024  # the most that a ticket may have: a recipe of many phases is 2 KB
REFUSED = b"refused"  # beside a server's error: asked again, it would say the same
_BAD_CLIP = pa.struct([pa.field(name, pa.string(), nullable=False) for name in ("clip_id", "source_uri", "words")])


def _fields_of(tensors: Iterable[str]) -> list[pa.Field]:
    """The counts of cut tokens, and for each tensor its bytes, shape and dtype."""
    kinds = (("", pa.large_binary()), ("_shape", pa.list_(pa.int64())), ("_dtype", pa.string()))
    counts = [pa.field(name, pa.int32(), nullable=False) for name in COUNTS]
    return counts + [pa.field(f"{name}{suffix}", kind, nullable=False) for name in tensors for suffix, kind in kinds]


SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("bad", pa.list_(pa.field("item", _BAD_CLIP, nullable=False)), nullable=False),
        *_fields_of(TENSORS),
    ]
)
TEXT_SCHEMA = pa.schema(_fields_of(TEXT))  # what a server makes of a prompt


class WireError(ValueError):
    """A ticket, an answer or a file that is not of this format; the message says what is wrong with it."""


class Ticket(BaseModel):
    """What a server is asked: the samples that a data rank trains on in a step."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    job: Job
    step: Annotated[int, Field(ge=0)]
    data_rank: Annotated[int, Field(ge=0)]
    data_ranks: Annotated[int, Field(ge=1)]

    def write(self) -> bytes:
        return self.model_dump_json().encode()


@dataclass(frozen=True)
class Stamp:
    """Which answer samples are of; ``encoder`` is the fingerprint of the weights, ``job`` that of the job."""

    encoder: str
    job: str
    step: int
    data_rank: int
    data_ranks: int

    def schema(self) -> pa.Schema:
        return SCHEMA.with_metadata({"format": FORMAT} | {key: str(value) for key, value in asdict(self).items()})


def fingerprint(job: Job) -> str:
    """Hash of all that a job says."""
    return hashlib.sha256(job.model_dump_json().encode()).hexdigest()[:16]


def read_ticket(written: bytes) -> Ticket:
    """WireError: it is no ticket; the message names the fields that are wrong."""
    if len(written) > TICKET_BYTES:
        raise WireError(f"a ticket of {len(written)} bytes, and the most is {TICKET_BYTES}")
    try:
        return Ticket.model_validate_json(written)
    except ValidationError as problem:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'ticket'}: {one['msg']}" for one in problem.errors()[:5])
        raise WireError(f"this is no ticket: {wrong}") from problem


def read_stamp(schema: pa.Schema) -> Stamp:
    """Which answer a stream or a file is. WireError: it is another format, or the schema is not this format's."""
    metadata = _read_metadata(schema, SCHEMA)
    try:
        counts = {key: int(metadata[key]) for key in ("step", "data_rank", "data_ranks")}
        return Stamp(metadata["encoder"], metadata["job"], **counts)
    except KeyError as problem:
        raise WireError(f"its schema does not name its {problem.args[0]}") from problem
    except ValueError as problem:
        raise WireError(f"its schema names a step or rank that is no number: {problem}") from problem


def to_record(encoded: Encoded, stamp: Stamp) -> pa.RecordBatch:
    """One sample as one record batch, which shares the memory of its tensors where they are contiguous on the CPU."""
    columns: list[pa.Array] = [
        pa.array([encoded.index], pa.int64()),
        pa.array([encoded.clip_id], pa.string()),
        pa.array([[asdict(clip) for clip in encoded.bad]], SCHEMA.field("bad").type),
    ]
    columns += _to_columns(encoded, TENSORS, f"clip {encoded.clip_id}")
    return pa.RecordBatch.from_arrays(columns, schema=stamp.schema())


def from_record(record: pa.RecordBatch) -> Encoded:
    """The sample of a record batch. WireError: it is not whole, or sizes and shapes do not go together.

    Tensors share the record's memory where their numbers are aligned there. PyTorch knows no read-only tensors: they
    may be written to where the memory is nobody else's, which holds for what ``read_file`` maps and for what Flight
    received.
    """
    _check_record(record, SCHEMA)
    index, clip_id, bad = (record.column(name)[0].as_py() for name in ("index", "clip_id", "bad"))
    whose = f"clip {clip_id}"
    latents, tokens, pooled = (_tensor(record, name, whose) for name in TENSORS)
    return Encoded(index, clip_id, latents, tokens, pooled, *_counts(record, whose), tuple(BadClip(**b) for b in bad))


def text_to_stream(text: Text, encoder: str) -> pa.Buffer:
    """A prompt's embedding as an Arrow stream of one record batch; ``encoder`` is the fingerprint of the weights."""
    schema = TEXT_SCHEMA.with_metadata({"format": FORMAT, "encoder": encoder})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(_to_columns(text, TEXT, "a prompt"), schema=schema))
    return sink.getvalue()


def text_from_stream(stream: pa.Buffer) -> tuple[Text, str]:
    """What ``text_to_stream`` was given. WireError: it is not whole, or of another format."""
    try:
        with pa.ipc.open_stream(stream) as reader:
            metadata = _read_metadata(reader.schema, TEXT_SCHEMA)
            records = list(reader)
    except (pa.ArrowException, ValueError) as problem:
        raise WireError(f"a prompt's embedding cannot be read: {problem}") from problem
    if len(records) != 1 or "encoder" not in metadata:
        raise WireError("a prompt's embedding is one record, whose schema names its encoder")
    _check_record(records[0], TEXT_SCHEMA)
    tokens, pooled = (_tensor(records[0], name, "a prompt") for name in TEXT)
    return Text(tokens, pooled, *_counts(records[0], "a prompt")), metadata["encoder"]


def _read_metadata(schema: pa.Schema, wanted: pa.Schema) -> dict[str, str]:
    metadata = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in _metadata(schema)}
    if metadata.get("format") != FORMAT:
        found = f"format {metadata['format']!r}" if "format" in metadata else "no format"
        raise WireError(f"its schema names {found}, and this program reads format {FORMAT!r}")
    if not schema.equals(wanted):
        raise WireError(f"its columns are {_columns(schema)}, not {_columns(wanted)}")
    return metadata


def _to_columns(source: Encoded | Text, tensors: Iterable[str], whose: str) -> list[pa.Array]:
    columns: list[pa.Array] = [pa.array([getattr(source, name)], pa.int32()) for name in COUNTS]
    for name in tensors:
        tensor: Tensor = getattr(source, name)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES or not tensor.numel():
            raise WireError(f"{name} of {whose} are {_kind(tensor)}; what travels is {_some(DTYPES)}")
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        ends = pa.py_buffer(np.array([0, flat.nbytes]))
        columns.append(pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(flat)]))
        columns += [pa.array([list(tensor.shape)], pa.list_(pa.int64())), pa.array([dtype], pa.string())]
    return columns


def _check_record(record: pa.RecordBatch, wanted: pa.Schema) -> None:
    if not record.schema.equals(wanted):
        raise WireError(f"its columns are {_columns(record.schema)}, not {_columns(wanted)}")
    if record.num_rows != 1:
        raise WireError(f"a record of {record.num_rows} samples, not of one")
    try:
        record.validate(full=True)
    except (pa.ArrowException, ValueError) as problem:
        raise WireError(f"a record that is damaged: {problem}") from problem
    nulls = [name for name, column in zip(wanted.names, record.columns, strict=True) if _has_null(column)]
    if nulls:
        raise WireError(f"a record without {_some(nulls)}")


def _has_null(column: pa.Array) -> bool:
    if column.null_count:
        return True
    if pa.types.is_list(column.type):
        return _has_null(column.flatten())
    return pa.types.is_struct(column.type) and any(_has_null(part) for part in column.flatten())


def _counts(record: pa.RecordBatch, whose: str) -> tuple[int, int]:
    t5, clip = (record.column(name)[0].as_py() for name in COUNTS)
    if min(t5, clip) < 0:
        raise WireError(f"{min(t5, clip)} tokens of {whose} were cut off")
    return t5, clip


def _tensor(record: pa.RecordBatch, name: str, whose: str) -> Tensor:
    shape = record.column(f"{name}_shape")[0].as_py()
    dtype = DTYPES.get(record.column(f"{name}_dtype")[0].as_py())
    if dtype is None:
        raise WireError(f"{name} of {whose} are {record.column(f'{name}_dtype')[0]}, not {_some(DTYPES)}")
    if not shape or None in shape or min(shape) < 1:
        raise WireError(f"{name} of {whose} have the shape {shape}")
    start, end = np.frombuffer(record.column(name).buffers()[1], np.int64)[record.column(name).offset :][:2].tolist()
    data = record.column(name).buffers()[2].slice(start, end - start)  # a scalar's buffer would be a copy
    if data.size != math.prod(shape) * dtype.itemsize:
        raise WireError(
            f"{name} of {whose} are {data.size} bytes, and {shape} of {dtype} take "
            f"{math.prod(shape) * dtype.itemsize}: they were cut off, or are of another shape"
        )
    # By DLPack, as torch.frombuffer warns of every read-only buffer, and warnings can be silenced for all threads only.
    flat: Tensor = torch.from_dlpack(pa.Array.from_buffers(pa.uint8(), data.size, [None, data]))
    if data.address % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype).view(shape)


def _metadata(schema: pa.Schema) -> list[tuple[bytes, bytes]]:
    return list((schema.metadata or {}).items())


def _columns(schema: pa.Schema) -> str:
    try:
        return ", ".join(f"{field.name} {field.type}" for field in list(schema)[:20])
    except UnicodeDecodeError:
        return "of names that are no text"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _some(names: Iterable[str]) -> str:
    return " or ".join(names)
