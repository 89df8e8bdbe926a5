"""A client takes from any server what the plan wants, and nothing else."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from tests.training.encode.serving import (
    BATCH,
    batches_equal,
    client_of,
    free_port,
    status_at,
)
from training.data.plan import BatchPlan
from training.encode import wire
from training.encode.answers import EncodeServer
from training.encode.encoder import Encoded, EncodeHere, Encoder
from training.encode.reading import BadClip
from training.encode.servers import NoServer, in_order


class Liar(flight.FlightServerBase):
    """A server that is none of ours, or a broken one: ``answer`` is what it sends."""

    def __init__(self, answer: Callable[[wire.Ticket], tuple[pa.Schema, Iterator[pa.RecordBatch]]]) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._answer = answer
        self.address = f"grpc://127.0.0.1:{self.port}"

    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.GeneratorStream:
        return flight.GeneratorStream(*self._answer(wire.read_ticket(ticket.ticket)))


def test_a_server_that_answers_what_it_should_not_is_found_out(
    plan: BatchPlan, encoder: Encoder, server: EncodeServer, tmp_path: Path
) -> None:
    def stamp_of(ticket: wire.Ticket) -> wire.Stamp:
        job = wire.fingerprint(ticket.job)
        return wire.Stamp(encoder.fingerprint, job, ticket.step, ticket.data_rank, ticket.data_ranks)

    wanted = EncodeHere(plan, encoder, 0, 1).batch(0)

    def liar(samples: list[Encoded] | None = None, /, raw: list[pa.RecordBatch] | None = None, **stamp: Any) -> Liar:
        def answer(ticket: wire.Ticket) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
            told = replace(stamp_of(ticket), **stamp)
            if raw is not None:
                return raw[0].schema, iter(raw)
            return told.schema(), (wire.to_record(sample, told) for sample in samples or wanted)

        return Liar(answer)

    def first(**changes: Any) -> list[Encoded]:
        return [replace(wanted[0], **changes), *wanted[1:]]

    bad = wanted[0].latents.clone()
    bad[3, 1, 2, 0] = float("nan")
    infinite = wanted[0].tokens.clone()
    infinite[-1, -1] = float("inf")
    stamp = stamp_of(wire.Ticket(job=plan.job, step=0, data_rank=0, data_ranks=1))
    whole = wire.to_record(wanted[0], stamp)
    columns = [
        pa.array([whole.column(name)[0].as_py()[:-4]], pa.large_binary()) if name == "tokens" else whole.column(name)
        for name in whole.schema.names
    ]
    truncated = pa.RecordBatch.from_arrays(columns, schema=whole.schema)
    sample = plan.samples(0)[0]
    own = BadClip(sample.clip.clip_id, sample.clip.source_uri, "words")
    other = BadClip("clip-none", "none.mp4", "words")
    after = [plan.replacement(sample, attempt).clip for attempt in range(1, 6)]
    tried = (own, *(BadClip(clip.clip_id, clip.source_uri, "words") for clip in after))
    liars = [
        (liar(raw=[pa.record_batch({"a": pa.array([1, 2])})]), "names no format"),
        (liar(first(latents=wanted[0].latents[:, :1])), "latents of clip .* not torch.float32"),
        (liar(first(latents=wanted[0].latents.bfloat16())), "latents of clip .* are torch.bfloat16"),
        (liar(first(tokens=wanted[0].tokens[None])), "text of clip .* not"),
        (liar(first(tokens=wanted[0].tokens[:-1])), "text of clip .* and was"),
        (liar(first(latents=bad)), "latents of clip .* are not finite"),
        (liar(first(tokens=infinite)), "tokens of clip .* are not finite"),
        (liar(wanted[::-1]), f"clip {wanted[-1].clip_id} at place {BATCH - 1}, where {wanted[0].clip_id} at 0 belongs"),
        (liar(first(clip_id="clip-none")), "clip clip-none at place 0, where"),
        (liar(wanted[:-1]), f"only {BATCH - 1} of {BATCH} samples"),
        (liar([*wanted, wanted[0]]), f"more than the {BATCH} samples"),
        (liar(raw=[truncated]), "tokens of clip .* they were cut off"),
        (liar(encoder="others"), f"it encodes with other weights, others and not {encoder.fingerprint}"),
        (liar(first(bad=(other,))), "clip clip-none of none.mp4 is said to be bad where"),
        (liar(first(bad=(own,))), f"clip {wanted[0].clip_id} at place 0, where .* at 0 belongs"),
        (liar(first(bad=tried)), "6 bad clips at place 0, and their bucket has no more"),
        (liar(step=1), "an answer to another question"),
        (liar(job="another"), "an answer to another question"),
    ]
    listed = tmp_path / "servers.txt"
    for lying, words in liars:
        listed.write_text(server.address)
        client = client_of([listed.as_uri()], plan, patience_s=0)
        assert batches_equal(client.fetch(0), wanted)  # now it knows which form of text
        listed.write_text(lying.address)
        with pytest.raises(NoServer, match=words) as found_out:
            client.fetch(0)
        assert lying.address in str(found_out.value)
    everyone = client_of([*(lying.address for lying, _ in liars), server.address], plan)
    got = [everyone.fetch(step, rank, 2) for step in range(1, 4) for rank in range(2)]
    here = [EncodeHere(plan, encoder, rank, 2).batch(step) for step in range(1, 4) for rank in range(2)]
    assert all(batches_equal(a, b) for a, b in zip(got, here, strict=True))
    for lying, _ in liars:
        lying.shutdown()


@contextlib.contextmanager
def raw_server(says: bytes | None) -> Iterator[str]:
    """A TCP server that answers every connection with the same bytes; None takes connections and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as connections:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connections.enter_context(connection)
                    if says is not None:
                        connection.sendall(says)
                        connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        yield f"grpc://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_servers_that_are_down_silent_or_speak_something_else_are_passed_over(
    plan: BatchPlan, encoder: Encoder, server: EncodeServer
) -> None:
    wanted = EncodeHere(plan, encoder, 0, 1).batch(2)
    down = f"grpc://127.0.0.1:{free_port()}"
    with raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"\xff" * 5000) as junk, raw_server(None) as silent:
        client = client_of([down, junk, silent, server.address], plan, slow_s=0.5)
        assert [batches_equal(client.fetch(2), wanted) for _ in range(5)] == [True] * 5
        with pytest.raises(NoServer) as none:
            client_of([down, junk, silent], plan, slow_s=0.2, patience_s=0).fetch(2)
    words = str(none.value)
    assert "for step 2" in words
    assert f"{down}: failed to connect" in words
    assert f"{junk}: " in words
    assert f"{silent}: was silent for more than 0.2 s" in words


def test_a_proxy_in_the_environment_does_not_catch_calls_to_this_machine(
    plan: BatchPlan, encoder: Encoder, server: EncodeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for host in ("127.0.0.1", "localhost"):
        address = f"grpc://{host}:{server.port}"
        assert status_at(address)["encoder"] == encoder.fingerprint
        assert batches_equal(
            client_of([address], plan, patience_s=0).fetch(1), EncodeHere(plan, encoder, 0, 1).batch(1)
        )


def test_servers_may_be_added_to_a_file_in_mid_run(
    plan: BatchPlan, encoder: Encoder, server: EncodeServer, tmp_path: Path
) -> None:
    listed = tmp_path / "servers.txt"
    client = client_of([listed.as_uri()], plan, patience_s=60)
    got: list[list[Encoded]] = []
    thread = threading.Thread(target=lambda: got.append(client.fetch(0)))
    thread.start()  # waits: the file is not even there
    listed.write_text("# none yet\n\n")
    listed.write_text(f"nonsense\ngrpc://127.0.0.1:{free_port()}\n{server.address}  # the good one\n")
    thread.join()
    assert batches_equal(got[0], EncodeHere(plan, encoder, 0, 1).batch(0))
    listed.unlink()  # while it is written anew, the last list holds
    assert len(client.fetch(1)) == BATCH
    with pytest.raises(NoServer, match="no address is in file:///nowhere"):
        client_of(["file:///nowhere"], plan, patience_s=0).fetch(0)
    for wrong in ("localhost:8815", "grpc://localhost", "http://localhost:1", "grpc://localhost:port"):
        with pytest.raises(ValueError, match="is no address of an encode server"):
            client_of([wrong], plan)
    with pytest.raises(ValueError, match="there is no encode server"):
        client_of([], plan)


def test_ranks_and_steps_begin_with_different_servers() -> None:
    servers = ["a", "b", "c", "d"]
    orders = {(step, rank): in_order(servers, step, rank) for step in range(64) for rank in range(8)}
    assert all(sorted(order) == servers for order in orders.values())
    for step in range(64):
        assert sorted(orders[step, rank][0] for rank in range(8)) == sorted(servers * 2)
    for rank in range(8):
        assert {orders[step, rank][0] for step in range(4)} == set(servers)
    after_a = [order[1] for order in orders.values() if order[0] == "a"]  # who does the work of "a" when it is down
    assert all(after_a.count(server) > len(after_a) / 5 for server in "bcd")
