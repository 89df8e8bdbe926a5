"""One encoder feeds all ranks, known before the first step; with servers no rank loads a VAE or a text encoder."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from benchmarks.encode_server import small_data
from tests.models.tiny_checkpoints import write_text_encoders, write_vae
from tests.training.encode.serving import free_port, serving
from tests.training.small_data import small_recipe, small_run, write_data
from tests.training.test_main import finish
from training.data.manifest import Manifest, open_manifest
from training.distributed.layout import Layout
from training.distributed.parallel import Parallel, start, stop
from training.encode.answers import EncodeServer
from training.encode.encoder import Encoder, load_encoder
from training.encode.encoding import agreed, open_encoding
from training.encode.servers import NoServer
from training.encode.status import check_servers, served_encoder
from training.observe.lineage import read_lineage
from training.run import EncodeConfig, TrainingRun

ALONE = Parallel(Layout(1, 1, 1), 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data")
    return open_manifest([write_data(folder)], folder / "cache")


@pytest.fixture(scope="module")
def server(manifest: Manifest) -> Iterator[EncodeServer]:
    with serving(load_encoder(None, small_recipe()), small_recipe(), [manifest]) as server:
        yield server


def run_with(folder: Path, *servers: str, **fields: float) -> TrainingRun:
    return small_run("none", folder / "out", encode=EncodeConfig(servers=servers, **fields))


def other_weights() -> Encoder:
    encoder = load_encoder(None, small_recipe())
    encoder.fingerprint = "others"
    return encoder


def test_servers_with_other_weights_are_refused_before_a_run_begins_also_those_in_lists(
    server: EncodeServer, manifest: Manifest, tmp_path: Path
) -> None:
    listed = tmp_path / "servers.txt"
    with serving(other_weights(), small_recipe(), [manifest]) as other:
        listed.write_text(f"# one a line\n{other.address}\n")
        for servers in ((server.address, other.address), (server.address, listed.as_uri())):
            run = run_with(tmp_path, *servers)
            for check in (check_servers, served_encoder):
                with pytest.raises(ValueError, match="encode with other weights or other devices"):
                    check(run, manifest.fingerprint)
            with pytest.raises(ValueError, match="encode with other weights or other devices"):
                open_encoding(run, ALONE, manifest.fingerprint)
        assert check_servers(run_with(tmp_path, listed.as_uri()), manifest.fingerprint) == "others"


def test_lists_of_servers_are_checked_in_preflight(server: EncodeServer, manifest: Manifest, tmp_path: Path) -> None:
    listed = tmp_path / "servers.txt"
    run = run_with(tmp_path, listed.as_uri())
    down = f"grpc://127.0.0.1:{free_port()}"
    for lines, words in (
        (None, f"no encode server answers: no address is in {listed.as_uri()}"),
        ("# none yet\n", f"no encode server answers: no address is in {listed.as_uri()}"),
        (f"nonsense\n{server.address}", "'nonsense' is no address of an encode server"),
        (down, f"no encode server answers: {down}: failed to connect"),
    ):
        if lines is not None:
            listed.write_text(lines)
        with pytest.raises(ValueError, match=words):
            check_servers(run, manifest.fingerprint)
    listed.write_text(f"{down}\n{server.address}\n")
    assert check_servers(run, manifest.fingerprint) == server.status()["encoder"]
    for changes, words in (({"fps": 12}, "has fps 24, not the recipe's"), ({"text": "sd3"}, "has text 'lite'")):
        other = run.model_copy(update={"recipe": small_recipe(**changes)})
        with pytest.raises(ValueError, match=words):
            check_servers(other, manifest.fingerprint)
    with pytest.raises(ValueError, match="has other manifests than this run, another"):
        check_servers(run, "another")


@pytest.mark.effect("EncodeConfig.patience_s")
def test_a_run_waits_for_its_first_server_as_long_as_it_has_patience(
    server: EncodeServer, manifest: Manifest, tmp_path: Path
) -> None:
    listed = tmp_path / "servers.txt"
    with pytest.raises(NoServer, match="no address is in"):
        served_encoder(run_with(tmp_path, listed.as_uri(), patience_s=0.01), manifest.fingerprint)
    found: list[str] = []
    patient = run_with(tmp_path, listed.as_uri(), patience_s=300.0)
    waits = threading.Thread(target=lambda: found.append(served_encoder(patient, manifest.fingerprint)))
    waits.start()
    listed.write_text(f"nonsense\n{server.address}")
    waits.join()
    assert found == [server.status()["encoder"]]


def test_servers_embed_the_prompts_and_no_rank_needs_their_weights(tmp_path: Path) -> None:
    uri = small_data(tmp_path / "data", clips=2)
    manifest = open_manifest([uri], tmp_path / "cache")
    write_vae(tmp_path / "encoders")
    write_text_encoders(tmp_path / "encoders")
    recipe = small_recipe(codec="wan", text="sd3")
    encoder = load_encoder(str(tmp_path / "encoders"), recipe)
    (tmp_path / "nothing").mkdir()
    with serving(encoder, recipe, [manifest], token="secret") as server:
        (tmp_path / "token").write_text("secret")
        encode = EncodeConfig(servers=(server.address,), token_file=str(tmp_path / "token"), patience_s=0.01)
        run = small_run(uri, tmp_path / "out", recipe=recipe, checkpoint=str(tmp_path / "nothing"), encode=encode)
        encoding = open_encoding(run, ALONE, manifest.fingerprint)
        assert (encoding.fingerprint, encoding.encoder) == (encoder.fingerprint, None)
        assert encoding.embed is not None
        for prompt in ("a cat", "", "größer \U0001f600"):
            for found, wanted in zip(encoding.embed(prompt), encoder.embed(prompt), strict=True):
                assert torch.equal(found, wanted) and found.dtype == wanted.dtype
        encoder.fingerprint = "others"
        with pytest.raises(NoServer, match="it encodes with other weights, others and not"):
            encoding.embed("a cat")


@pytest.mark.effect("EncodeConfig.servers")
def test_a_run_with_servers_is_fed_by_them_alone(tmp_path: Path) -> None:
    """A missing clip is replaced on the way; what the run says of its samples stays whole."""
    uri = write_data(tmp_path / "data")
    manifest = open_manifest([uri], tmp_path / "cache")
    (tmp_path / "data" / "0.mp4").unlink()
    with serving(load_encoder(None, small_recipe()), small_recipe(), [manifest]) as server:
        encode = EncodeConfig(servers=(server.address,), buffer_gb=0.2, most_bad_clips=1.0)
        run = small_run(uri, tmp_path / "out", encode=encode)
        finish(run)
        status = server.status()
    rows = read_lineage(run.folder)
    assert status["samples"] == len(rows) == 12 * 4
    assert status["bad_clips"] > 0
    assert status["prompts"] == 2  # of the one sample video, and the empty one of guidance
    assert list((run.folder / "samples").glob("step-*/00.mp4"))


def _agrees(rank: int, folder: str) -> None:
    """One of two ranks: what both say, what only the leader says, and two things."""
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    parallel = start(Layout(2, 1, 1), "cpu")
    assert agreed("one", parallel) == "one"
    assert agreed("one" if rank == 0 else None, parallel) == "one"
    with pytest.raises(ValueError, match=r"other weights .* one feeds rank 0; two feeds rank 1"):
        agreed("one" if rank == 0 else "two", parallel)
    stop(parallel)
    torch.distributed.destroy_process_group()


def test_ranks_that_other_weights_would_feed_all_refuse(tmp_path: Path) -> None:
    mp.spawn(_agrees, args=(str(tmp_path),), nprocs=2)
