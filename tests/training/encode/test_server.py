"""Encode servers give what the trainer would have encoded itself, and none of them is needed."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.flight as flight
import pytest
import torch
import yaml

from benchmarks.encode_server import ServerProcess, small_data
from models.dct_codec import DctCodec
from models.hashed_text import HashedTextEncoder
from tests.training.encode.serving import (
    BATCH,
    RECIPE,
    STEPS,
    asked,
    batches_equal,
    client_of,
    free_port,
    serving,
    status_at,
)
from training.data import clips
from training.data.manifest import Manifest, open_manifest
from training.data.plan import BatchPlan, Job
from training.encode import server as encode_server
from training.encode import wire
from training.encode.answers import EncodeServer
from training.encode.encoder import Encoded, EncodeHere, Encoder, load_encoder
from training.encode.servers import NoServer, WrongToken, is_loopback
from training.recipe import Recipe


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
            status = status_at(address, "secret")
            assert (status["encoder"], status["manifests"]) == (encoder.fingerprint, [plan.manifest.fingerprint])
        client = client_of([one, two], plan, "secret")
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

        with start(ports[1]) as again:
            assert again.address == two
            while not status_at(two, "secret")["requests"]:  # for a while it is not asked, as it failed before
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
    assert status_at(server.address)["working"] == 0


def with_codec(codec: str) -> Recipe:
    return RECIPE.model_copy(update={"codec": codec})


def plan_of_small_data(folder: Path, clips: int) -> BatchPlan:
    manifest = open_manifest([small_data(folder, clips)], folder / "cache")
    return BatchPlan(manifest, Job(recipe=RECIPE, seed=0, manifest=manifest.fingerprint))


def test_a_clip_that_is_missing_on_one_server_comes_from_another(tmp_path: Path) -> None:
    """What a server that lacks a disk puts in its place is taken only where no server has the clip."""
    plan = plan_of_small_data(tmp_path, clips=3)
    before = load_encoder(None, RECIPE)
    wanted = EncodeHere(plan, before, 0, 1).batch(0)  # it remembers them
    gone = plan.samples(0)[0].clip
    Path(gone.source_uri).unlink()
    here = EncodeHere(plan, load_encoder(None, RECIPE), 0, 1).batch(0)
    assert [bad.clip_id for encoded in here for bad in encoded.bad]
    with serving(load_encoder(None, RECIPE), RECIPE, [plan.manifest]) as lacks:
        alone = client_of([lacks.address], plan).fetch(0)
        assert batches_equal(alone, here)  # replaced, and said, as the trainer does it for itself
        assert lacks.status()["bad_clips"] == sum(len(encoded.bad) for encoded in here)
        with serving(before, RECIPE, [plan.manifest]) as has:
            for servers in ([lacks.address, has.address], [has.address, lacks.address]):
                assert batches_equal(client_of(servers, plan).fetch(0), wanted)
        with serving(load_encoder(None, RECIPE), RECIPE, [plan.manifest]) as too:
            assert batches_equal(client_of([lacks.address, too.address], plan).fetch(0), here)


def test_a_bucket_without_a_clip_that_can_be_read_is_refused_in_words(tmp_path: Path) -> None:
    plan = plan_of_small_data(tmp_path, clips=2)
    for clip in (plan.manifest.clip(row) for row in range(2)):
        Path(clip.source_uri).unlink()
    with serving(load_encoder(None, RECIPE), RECIPE, [plan.manifest]) as lacks:
        with pytest.raises(NoServer, match=r"all refuse.*none of the 2 clips of bucket .* can be read") as refused:
            client_of([lacks.address], plan, patience_s=600).fetch(0)
        assert f"{lacks.address}: none of" in str(refused.value)


class Counted(DctCodec):
    """Holds the device until so many clips have been read."""

    def __init__(self, reads: threading.Semaphore, wanted: int) -> None:
        super().__init__()
        self._reads, self._wanted, self.enough = reads, wanted, True

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        for _ in range(self._wanted):
            self.enough &= self._reads.acquire(timeout=30)
        self._wanted = 0
        return super().encode(video)


def test_clips_are_read_while_the_device_has_others(plan: BatchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests for two samples each: while the device has the first sample, all four clips are read."""
    reads = threading.Semaphore(0)

    def read_clip(*arguments: Any) -> torch.Tensor:
        pixels = clips.read_clip(*arguments)
        reads.release()
        return pixels

    monkeypatch.setattr("training.encode.encoder.read_clip", read_clip)
    codec = Counted(reads, wanted=4)
    encoder = Encoder(codec, HashedTextEncoder(), RECIPE.fps, load_encoder(None, RECIPE).fingerprint)
    with serving(encoder, RECIPE, [plan.manifest], readers=4) as server:
        client = client_of([server.address], plan)
        fetched: list[list[Encoded]] = []
        ranks = [threading.Thread(target=lambda r=rank: fetched.append(client.fetch(0, r, 2))) for rank in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
    assert codec.enough and [len(batch) for batch in fetched] == [BATCH // 2] * 2


def test_a_wrong_token_fails_at_once_and_says_so(
    encoder: Encoder, manifest: Manifest, plan: BatchPlan, tmp_path: Path
) -> None:
    with serving(encoder, RECIPE, [manifest], token="secret") as server:
        for token, words in (("Secret", "the token is wrong"), ("secre", "wrong"), (None, "wants a token")):
            with pytest.raises(WrongToken, match=f"{server.address} does not let us in: .*{words}"):
                client_of([server.address], plan, token, patience_s=600).fetch(0)
            with pytest.raises(flight.FlightUnauthenticatedError):
                status_at(server.address, token)
        listed = tmp_path / "servers.txt"
        listed.write_text(server.address)
        client = client_of([listed.as_uri()], plan, "secret", patience_s=1)
        assert len(client.fetch(0)) == BATCH
        # A server with another token that is added in mid-run is one that does not answer, not the end of the run.
        with serving(encoder, RECIPE, [manifest], token="other") as stranger:
            listed.write_text(f"{stranger.address}\n{server.address}")
            assert [len(client.fetch(step)) for step in range(4)] == [BATCH] * 4
            listed.write_text(stranger.address)
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
        client = client_of([address], plan, "secret", certificate[0])
        assert batches_equal(client.fetch(3), EncodeHere(plan, encoder, 0, 1).batch(3))
        for other, authorities in ((address, None), (f"grpc://localhost:{server.port}", None)):
            with pytest.raises(NoServer):
                client_of([other], plan, "secret", authorities, patience_s=0).fetch(3)
