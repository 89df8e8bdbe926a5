"""Samples travel bit by bit, and what is not of this format is refused in words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from training.data.plan import Job
from training.encode import wire
from training.encode.batch_file import file_bytes, read_file, write_file
from training.encode.encoder import Encoded, Text
from training.encode.reading import BadClip
from training.encode.servers import read_token
from training.recipe import Phase, Recipe

STAMP = wire.Stamp("weights", "job", step=7, data_rank=1, data_ranks=2)
RECIPE = Recipe(name="r", frames=1, height=32, width=32, image_batch=8, learning_rate=1, warmup_steps=0,
                phases=(Phase(data="images", steps=9),))  # fmt: skip


def sample(dtype: torch.dtype = torch.float32, seed: int = 0) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    latents, tokens, pooled = (torch.randn(s, generator=generator) for s in ((16, 2, 3, 5), (7, 11), (3,)))
    bad = tuple(BadClip(f"bad-{n}", f"s3://bucket/größe-{n}.mp4", "cannot be read") for n in range(seed))
    return Encoded(seed, f"clip-{seed}", latents, tokens.to(dtype), pooled.to(dtype), 3, 182, bad)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def same(a: Encoded, b: Encoded) -> bool:
    """To the bit: also the sign of zero, and which NaN it is."""
    tensors = [(getattr(a, name), getattr(b, name)) for name in wire.TENSORS]
    facts = [(each.index, each.clip_id, each.cut_t5, each.cut_clip, each.bad) for each in (a, b)]
    return facts[0] == facts[1] and all(
        x.dtype == y.dtype and x.shape == y.shape and bits(x) == bits(y) for x, y in tensors
    )


def changed(record: pa.RecordBatch, **columns: pa.Array) -> pa.RecordBatch:
    arrays = [columns.get(field.name, column) for field, column in zip(record.schema, record.columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=record.schema)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_becomes_a_record_and_again_itself(dtype: torch.dtype) -> None:
    encoded = sample(dtype, 2)
    assert same(wire.from_record(wire.to_record(encoded, STAMP)), encoded)
    strange = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45], dtype=dtype)
    odd = replace(encoded, latents=encoded.latents.transpose(1, 3), pooled=strange)  # not contiguous
    assert same(wire.from_record(wire.to_record(odd, STAMP)), odd)


def test_nothing_is_copied_between_tensor_and_record() -> None:
    encoded = sample(torch.bfloat16)
    there = wire.from_record(wire.to_record(encoded, STAMP))
    for name in wire.TENSORS:
        assert getattr(there, name).data_ptr() == getattr(encoded, name).data_ptr()


def test_numbers_at_an_address_they_cannot_have_are_moved() -> None:
    encoded = sample()
    record = wire.to_record(encoded, STAMP)
    off_by_one = pa.py_buffer(b"x" + bits(encoded.latents)).slice(1)
    assert off_by_one.address % 4
    ends = pa.py_buffer(np.array([0, off_by_one.size]))
    latents = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, off_by_one])
    there = wire.from_record(changed(record, latents=latents))
    assert same(there, encoded)
    assert there.latents.data_ptr() % 4 == 0


def test_a_file_is_mapped_and_outlives_its_name(tmp_path: Path) -> None:
    batch = [sample(torch.bfloat16, seed) for seed in range(3)]
    records = [wire.to_record(encoded, STAMP) for encoded in batch]
    path = tmp_path / "step.arrow"
    write_file(path, records)
    assert [file.name for file in tmp_path.iterdir()] == ["step.arrow"]
    assert path.stat().st_size == file_bytes(records)

    stamp, there = read_file(path)
    assert stamp == STAMP
    assert all(same(a, b) for a, b in zip(there, batch, strict=True))
    there[0].latents.zero_()  # is ours to write to, and does not reach the file
    assert all(same(a, b) for a, b in zip(read_file(path)[1], batch, strict=True))
    path.unlink()
    assert same(there[1], batch[1])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "step.arrow"
    write_file(path, [wire.to_record(sample(), STAMP)])
    whole = path.read_bytes()
    for damaged in (b"", b"junk" * 100, whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(wire.WireError, match=r"batch .*step\.arrow cannot be read"):
            read_file(path)


def test_a_record_that_contradicts_itself_is_refused() -> None:
    record = wire.to_record(sample(), STAMP)
    lists, bad = pa.list_(pa.int64()), wire.SCHEMA.field("bad").type
    not_utf8 = pa.array([b"\xff"], pa.binary()).view(pa.string())
    cases: list[tuple[dict[str, pa.Array], str]] = [
        ({"latents": pa.array([b"short"], pa.large_binary())}, "latents of clip clip-0 are 5 bytes, and .* take 1920"),
        ({"latents_shape": pa.array([[16, 2, 3, 6]], lists)}, "1920 bytes, and .* take 2304"),
        ({"tokens_shape": pa.array([[-7, -11]], lists)}, r"tokens of clip clip-0 have the shape \[-7, -11\]"),
        ({"tokens_shape": pa.array([[]], lists)}, "have the shape"),
        ({"tokens_shape": pa.array([[2**62, 2**62]], lists)}, "take"),
        ({"pooled_dtype": pa.array(["int8"])}, "pooled of clip clip-0 are int8, not float32 or bfloat16"),
        ({"clip_id": pa.array([None], pa.string())}, "without clip_id"),
        ({"clip_id": not_utf8}, "damaged"),
        ({"cut_t5": pa.array([-1], pa.int32())}, "-1 tokens of clip clip-0 were cut off"),
        ({"bad": pa.array([[{"clip_id": "a", "source_uri": None, "words": "w"}]], bad)}, "without bad"),
        ({"bad": pa.array([[None]], bad)}, "without bad"),
        ({"bad": pa.array([None], bad)}, "without bad"),
    ]
    for columns, words in cases:
        with pytest.raises(wire.WireError, match=words):
            wire.from_record(changed(record, **columns))
    two = pa.Table.from_batches([record, record]).combine_chunks().to_batches()[0]
    with pytest.raises(wire.WireError, match="a record of 2 samples"):
        wire.from_record(two)
    with pytest.raises(wire.WireError, match="its columns are a int64"):
        wire.from_record(pa.record_batch({"a": pa.array([1])}))


def test_what_does_not_travel_is_said_where_it_would_leave() -> None:
    with pytest.raises(wire.WireError, match=r"latents of clip clip-0 are int64 \[2\]; what travels is float32 or"):
        wire.to_record(replace(sample(), latents=torch.arange(2)), STAMP)
    with pytest.raises(wire.WireError, match=r"pooled of clip clip-0 are float32 \[0\]"):
        wire.to_record(replace(sample(), pooled=torch.zeros(0)), STAMP)


def test_the_schema_says_which_answer_it_is() -> None:
    schema = STAMP.schema()
    assert wire.read_stamp(schema) == STAMP
    metadata = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    for other, words in (
        ({}, "names no format"),
        (metadata | {"format": "1"}, "names format '1', and this program reads format '2'"),
        (metadata | {"step": "seven"}, "step or rank that is no number"),
        ({key: value for key, value in metadata.items() if key != "encoder"}, "does not name its encoder"),
    ):
        with pytest.raises(wire.WireError, match=words):
            wire.read_stamp(schema.with_metadata(other))
    with pytest.raises(wire.WireError, match="its columns are index int64, not index int64, clip_id"):
        wire.read_stamp(pa.schema([schema.field("index")], metadata=metadata))


def test_a_prompts_embedding_becomes_a_stream_and_again_itself_or_is_refused() -> None:
    tokens, pooled = torch.randn(7, 11).bfloat16(), torch.randn(3).bfloat16()
    stream = wire.text_to_stream(Text(tokens, pooled, 1, 2), "weights")
    there, encoder = wire.text_from_stream(stream)
    assert encoder == "weights" and (there.cut_t5, there.cut_clip) == (1, 2)
    assert bits(there.tokens) == bits(tokens) and bits(there.pooled) == bits(pooled)
    whole = stream.to_pybytes()
    sample_stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(sample_stream, STAMP.schema()) as writer:
        writer.write_batch(wire.to_record(sample(), STAMP))
    for damaged in (b"", b"junk" * 9, whole[: len(whole) // 2], sample_stream.getvalue().to_pybytes()):
        with pytest.raises(wire.WireError):
            wire.text_from_stream(pa.py_buffer(damaged))


def test_a_ticket_is_json_and_what_is_wrong_with_it_is_named() -> None:
    ticket = wire.Ticket(job=Job(recipe=RECIPE, seed=3, manifest="m"), step=2, data_rank=0, data_ranks=1)
    assert wire.read_ticket(ticket.write()) == ticket
    assert wire.fingerprint(wire.read_ticket(ticket.write()).job) == wire.fingerprint(ticket.job)
    assert wire.fingerprint(ticket.job) != wire.fingerprint(ticket.job.model_copy(update={"seed": 4}))
    written = ticket.write()
    for damaged, words in (
        (b"\x80\x04}", "this is no ticket: ticket: Invalid JSON"),
        (b"[]", "this is no ticket"),
        (b"{}", "job: Field required; step: Field required"),
        (written.replace(b'"step":2', b'"step":-1'), "step: .* greater than or equal to 0"),
        (written.replace(b'"step":2', b'"step":"2"'), "step: .* valid integer"),
        (written.replace(b'"step":2', b'"step":2,"path":"/etc"'), "path: Extra inputs"),
        (written.replace(b'"frames":1', b'"frames":2'), "job.recipe"),
        (b" " * 10**6, "a ticket of 1000000 bytes"),
    ):
        with pytest.raises(wire.WireError, match=words):
            wire.read_ticket(damaged)


def test_a_token_is_one_line_of_printable_characters(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(" secret\n")
    assert read_token(path) == "secret"
    for wrong in ("", "\n", "two\nlines", "schlüssel"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="holds no token"):
            read_token(path)
