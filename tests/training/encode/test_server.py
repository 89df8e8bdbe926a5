"""Encode servers give what the trainer would have encoded itself, and none of them is needed."""

import contextlib
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pytest
import yaml

from benchmarks.encode_server import ServerProcess, small_data, small_recipe
from tests.training.encode.test_wire import same
from training.data.manifest import Manifest, open_manifest
from training.data.plan import BatchPlan, Job
from training.encode import server as encode_server
from training.encode import wire
from training.encode.client import EncodeClient, NoServer, WrongToken, in_order, server_status
from training.encode.encoder import Encoded, EncodeHere, Encoder, load_encoder
from training.encode.server import EncodeServer, is_loopback
from training.recipe import Recipe

STEPS, BATCH = 12, 4
RECIPE = small_recipe(STEPS, BATCH)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def manifest(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return open_manifest([uri], tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def plan(manifest: Manifest) -> BatchPlan:
    return BatchPlan(manifest, Job(recipe=RECIPE, seed=5, manifest=manifest.fingerprint))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(None, RECIPE)


@pytest.fixture(scope="module")
def server(encoder: Encoder, manifest: Manifest) -> Iterator[EncodeServer]:
    server = EncodeServer(encoder, RECIPE, [manifest])
    yield server
    server.end()


@contextlib.contextmanager
def serving(*arguments: Any, **options: Any) -> Iterator[EncodeServer]:
    server = EncodeServer(*arguments, **options)
    try:
        yield server
    finally:
        server.end()


def asked(address: str, ticket: bytes, token: str | None = None) -> pa.Table:
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    with flight.connect(address) as client:
        return client.do_get(flight.Ticket(ticket), flight.FlightCallOptions(headers=headers)).read_all()


def batches_equal(found: list[Encoded], wanted: list[Encoded]) -> bool:
    return len(found) == len(wanted) and all(same(a, b) for a, b in zip(found, wanted, strict=True))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_two_server_processes_of_which_one_is_killed_under_load_lose_nothing(
    uri: str, plan: BatchPlan, encoder: Encoder, tmp_path: Path
) -> None:
    """Every step and sample is, bit by bit, what the trainer's own process encodes; the dead server comes back."""
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(json.loads(RECIPE.model_dump_json())))
    token = tmp_path / "token"
    token.write_text("secret\n")
    ports = free_port(), free_port()
    common = ["--manifest", uri, "--recipe", str(recipe), "--token-file", str(token)]

    def start(port: int) -> ServerProcess:
        return ServerProcess([*common, "--port", str(port)])

    here = [[EncodeHere(plan, encoder, rank, 2).batch(step) for step in range(STEPS)] for rank in range(2)]
    with start(ports[0]) as first, start(ports[1]) as second:
        one, two = first.address, second.address
        assert (one, two) == tuple(f"grpc://127.0.0.1:{port}" for port in ports)
        for address in (one, two):
            status = server_status(address, "secret")
            assert (status["encoder"], status["manifests"]) == (encoder.fingerprint, [plan.manifest.fingerprint])
        client = EncodeClient([one, two], "secret", plan)
        lost: list[tuple[int, int]] = []
        begun = threading.Event()

        def train(rank: int) -> None:
            for step in range(STEPS):
                if step == 2:
                    begun.set()
                if not batches_equal(client.fetch(step, rank, 2), here[rank][step]):
                    lost.append((step, rank))

        ranks = [threading.Thread(target=train, args=(rank,)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        begun.wait()
        second.kill()  # while both ranks ask
        for rank in ranks:
            rank.join()
        assert lost == []
        assert client.encoder == encoder.fingerprint

        with start(ports[1]) as again:
            assert again.address == two
            while not server_status(two, "secret")["requests"]:  # for a while it is not asked, as it failed before
                assert batches_equal(client.fetch(1, 0, 2), here[0][1])
            for server in (again, first):
                server.process.send_signal(signal.SIGTERM)
            assert [server.process.wait() for server in (again, first)] == [0, 0]


def test_what_is_wrong_with_a_request_is_said_and_the_server_goes_on(server: EncodeServer, plan: BatchPlan) -> None:
    good = wire.Ticket(job=plan.job, step=0, data_rank=0, data_ranks=1)
    for ticket, words in (
        (b"not json", "this is no ticket: ticket: Invalid JSON"),
        (b'{"step": 1}', "job: Field required"),
        (
            good.model_copy(update={"step": STEPS}).write(),
            f"recipe small has {STEPS} steps from 0, and none is {STEPS}",
        ),
        (good.model_copy(update={"data_rank": 1}).write(), "data rank 1 is none of 1"),
        (good.model_copy(update={"data_ranks": 3}).write(), "does not divide evenly among 3 ranks"),
        (
            good.model_copy(update={"job": plan.job.model_copy(update={"manifest": "another"})}).write(),
            f"the job is for manifest another, and this server has {plan.manifest.fingerprint}",
        ),
        (
            good.model_copy(update={"job": plan.job.model_copy(update={"recipe": with_codec("wan")})}).write(),
            "recipe small wants codec 'wan', and this server has 'lite'",
        ),
    ):
        with pytest.raises(flight.FlightServerError, match=words) as refused:
            asked(server.address, ticket)
        assert refused.value.extra_info == wire.REFUSED
        assert asked(server.address, good.write()).num_rows == BATCH
    with (
        pytest.raises(flight.FlightServerError, match="no action 'shutdown'"),
        flight.connect(server.address) as client,
    ):
        list(client.do_action(flight.Action("shutdown", b"")))
    assert server_status(server.address)["working"] == 0


def with_codec(codec: str) -> Recipe:
    return RECIPE.model_copy(update={"codec": codec})


def test_a_clip_that_is_missing_on_one_server_comes_from_another_and_is_named_when_it_is_missing_on_all(
    plan: BatchPlan, tmp_path: Path
) -> None:
    uri = small_data(tmp_path / "data", clips=2)
    manifest = open_manifest([uri], tmp_path / "cache")
    plan = BatchPlan(manifest, Job(recipe=RECIPE, seed=0, manifest=manifest.fingerprint))
    before = load_encoder(None, RECIPE)
    wanted = EncodeHere(plan, before, 0, 1).batch(0)  # it remembers them
    gone = plan.samples(0)[0].clip
    Path(gone.source_uri).unlink()
    with serving(load_encoder(None, RECIPE), RECIPE, [manifest]) as lacks:
        with pytest.raises(NoServer) as refused:
            EncodeClient([lacks.address], None, plan, patience_s=600).fetch(0)
        assert "all refuse" in str(refused.value)
        assert f"{lacks.address}: clip {gone.clip_id} of {gone.source_uri} cannot be read" in str(refused.value)
        with serving(before, RECIPE, [manifest]) as has:
            client = EncodeClient([lacks.address, has.address], None, plan)
            assert batches_equal(client.fetch(0), wanted)


def test_a_wrong_token_fails_at_once_and_says_so(encoder: Encoder, manifest: Manifest, plan: BatchPlan) -> None:
    with serving(encoder, RECIPE, [manifest], token="secret") as server:
        for token, words in (("Secret", "the token is wrong"), ("secre", "wrong"), (None, "wants a token")):
            with pytest.raises(WrongToken, match=f"{server.address} does not let us in: .*{words}"):
                EncodeClient([server.address], token, plan, patience_s=600).fetch(0)
            with pytest.raises(flight.FlightUnauthenticatedError):
                server_status(server.address, token)
        client = EncodeClient([server.address], "secret", plan)
        assert len(client.fetch(0)) == BATCH
        # A server with another token that is added in mid-run is one that does not answer, not the end of the run.
        with serving(encoder, RECIPE, [manifest], token="other") as stranger:
            client._servers = (stranger.address, server.address)
            assert [len(client.fetch(step)) for step in range(4)] == [BATCH] * 4
            client._servers = (stranger.address,)
            client._patience_s = 0
            with pytest.raises(NoServer, match="the token is wrong"):
                client.fetch(0)


def test_without_a_token_only_this_machine_is_served(
    encoder: Encoder, manifest: Manifest, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0 can be reached from other machines: that needs a token"):
        EncodeServer(encoder, RECIPE, [manifest], host="0.0.0.0")
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        assert not is_loopback(host)
        with pytest.raises(SystemExit) as status:
            encode_server.main(["--manifest", uri, "--recipe", "lite-stage1", "--host", host])
        assert status.value.code == 2
        assert f"{host} can be reached from other machines: that needs --token-file" in capsys.readouterr().err
    assert is_loopback("127.0.0.9") and is_loopback("::1") and is_loopback("localhost")


def test_what_keeps_a_server_from_starting_is_said(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], server: EncodeServer, restored_signals: None
) -> None:
    (tmp_path / "empty").write_text("\n")
    for arguments, words in (
        (["--manifest", "/nowhere", "--recipe", "lite-stage1"], "manifest '/nowhere' does not exist"),
        (["--manifest", uri, "--recipe", "none"], "no recipe is named 'none'"),
        (["--manifest", uri, "--recipe", "stage1"], "encodes with vae and text_encoder*, and no folder has them"),
        (["--manifest", uri, "--recipe", "lite-stage1", "--token-file", str(tmp_path / "empty")], "holds no token"),
        (["--manifest", uri, "--recipe", "lite-stage1", "--token-file", "/nowhere"], "No such file"),
        (["--manifest", uri, "--recipe", "lite-stage1", "--port", str(server.port)], "Server did not start"),
    ):
        assert encode_server.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("encode server cannot start: ")
        assert words in error


@pytest.fixture
def restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_with_a_certificate_the_way_is_encrypted(
    encoder: Encoder, manifest: Manifest, plan: BatchPlan, tmp_path: Path
) -> None:
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
    subprocess.run(new, check=True, capture_output=True)
    certificate = (tmp_path / "cert").read_bytes(), (tmp_path / "key").read_bytes()
    with serving(encoder, RECIPE, [manifest], token="secret", certificate=certificate) as server:
        address = f"grpc+tls://localhost:{server.port}"
        client = EncodeClient([address], "secret", plan, authorities=certificate[0])
        assert batches_equal(client.fetch(3), EncodeHere(plan, encoder, 0, 1).batch(3))
        for other, authorities in ((address, None), (f"grpc://localhost:{server.port}", None)):
            with pytest.raises(NoServer):
                EncodeClient([other], "secret", plan, authorities=authorities, patience_s=0).fetch(3)


class Liar(flight.FlightServerBase):
    """A server that is none of ours, or a broken one: ``answer`` is what it sends."""

    def __init__(self, answer: Callable[[wire.Ticket], tuple[pa.Schema, Iterator[pa.RecordBatch]]]) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._answer = answer
        self.address = f"grpc://127.0.0.1:{self.port}"

    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.GeneratorStream:
        return flight.GeneratorStream(*self._answer(wire.read_ticket(ticket.ticket)))


def test_a_server_that_answers_what_it_should_not_is_found_out(
    plan: BatchPlan, encoder: Encoder, server: EncodeServer
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
        (liar(step=1), "an answer to another question"),
        (liar(job="another"), "an answer to another question"),
    ]
    for lying, words in liars:
        client = EncodeClient([server.address], None, plan, patience_s=0)
        assert batches_equal(client.fetch(0), wanted)  # now it knows which weights and which form of text
        client._servers = (lying.address,)
        with pytest.raises(NoServer, match=words) as found_out:
            client.fetch(0)
        assert lying.address in str(found_out.value)
    everyone = [*(lying.address for lying, _ in liars), server.address]
    client = EncodeClient(everyone, None, plan, encoder=encoder.fingerprint)
    client._text = None
    got = [client.fetch(step, rank, 2) for step in range(4) for rank in range(2)]
    here = [EncodeHere(plan, encoder, rank, 2).batch(step) for step in range(4) for rank in range(2)]
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
        client = EncodeClient([down, junk, silent, server.address], None, plan, slow_s=0.5)
        assert [batches_equal(client.fetch(2), wanted) for _ in range(5)] == [True] * 5
        with pytest.raises(NoServer) as none:
            EncodeClient([down, junk, silent], None, plan, slow_s=0.2, patience_s=0).fetch(2)
    words = str(none.value)
    assert "for step 2" in words
    assert f"{down}: failed to connect" in words
    assert f"{junk}: " in words
    assert f"{silent}: was silent for more than 0.2 s" in words


def test_servers_may_be_added_to_a_file_in_mid_run(
    plan: BatchPlan, encoder: Encoder, server: EncodeServer, tmp_path: Path
) -> None:
    listed = tmp_path / "servers.txt"
    client = EncodeClient([listed.as_uri()], None, plan, patience_s=60)
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
        EncodeClient(["file:///nowhere"], None, plan, patience_s=0).fetch(0)
    for wrong in ("localhost:8815", "grpc://localhost", "http://localhost:1", "grpc://localhost:port"):
        with pytest.raises(ValueError, match="is no address of an encode server"):
            EncodeClient([wrong], None, plan)
    with pytest.raises(ValueError, match="there is no encode server"):
        EncodeClient([], None, plan)


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
