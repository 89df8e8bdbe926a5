"""The buffer gives the trainer the very samples that it would encode, holds to its bound, and leaves nothing behind."""

import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from benchmarks.encode_server import ROOT, small_data, small_recipe
from tests.training.encode.serving import batches_equal, serving
from training.data.manifest import open_manifest
from training.data.plan import BatchPlan, Job
from training.encode.answers import EncodeServer
from training.encode.buffer import BufferDied, BufferedFeed, Share
from training.encode.buffer_folder import PREFIX, hold, new_folder, remove_if_left
from training.encode.encoder import EncodeHere, load_encoder
from training.encode.servers import WrongToken
from training.run import EncodeConfig

STEPS, BATCH = 12, 4
RECIPE = small_recipe(STEPS, BATCH)
TOKEN = "secret"


class Setting(BaseModel):
    """What a trainer is told of data and server."""

    uri: str
    job: Job
    server: str
    token_file: str

    def share(self, folder: Path, batches: float = 50.0, rank: int = 0, ranks: int = 1) -> Share:
        """The share of a data rank, with room for so many batches of all ranks."""
        encode = EncodeConfig(
            servers=(self.server,), token_file=self.token_file, buffer_folder=str(folder), buffer_gb=batches * GB
        )
        return Share((self.uri,), self.job, encode, load_encoder(None, self.job.recipe).fingerprint, rank, ranks)


class _Server:
    def __init__(self, setting: Setting, plan: BatchPlan, server: EncodeServer) -> None:
        self.setting, self.plan, self.server = setting, plan, server


GB = 22.2e6 / 1e9  # of a batch: four times 333 x 4096 float32 of text, and small latents


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Server]:
    folder = tmp_path_factory.mktemp("data")
    uri = small_data(folder)
    manifest = open_manifest([uri])
    job = Job(recipe=RECIPE, seed=5, manifest=manifest.fingerprint)
    (folder / "token").write_text(TOKEN)
    with serving(load_encoder(None, RECIPE), RECIPE, [manifest], token=TOKEN) as server:
        setting = Setting(uri=uri, job=job, server=server.address, token_file=str(folder / "token"))
        yield _Server(setting, BatchPlan(manifest, job), server)


def until(true: Callable[[], bool]) -> None:
    """Wait for what must come true; the test's time limit says when it does not."""
    while not true():
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process has not ended; an orphan that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def files(folder: Path) -> dict[str, int]:
    """The batches in the buffers below a folder, and their sizes."""
    return {path.name: path.stat().st_size for path in folder.glob(f"{PREFIX}*/*.arrow")}


def process_of(rank: int) -> multiprocessing.process.BaseProcess:
    """The buffer process of a data rank of this test."""
    return next(each for each in multiprocessing.active_children() if each.name == f"buffer of {rank}")


@pytest.mark.effect("EncodeConfig.buffer_gb")
@pytest.mark.effect("EncodeConfig.buffer_folder")
def test_batches_are_the_trainers_own_bit_by_bit_and_as_many_are_ahead_as_there_is_room_for(
    here: _Server, tmp_path: Path
) -> None:
    setting, before = here.setting, here.server.status()["requests"]
    wanted = EncodeHere(here.plan, load_encoder(None, RECIPE), 1, 2)
    share = setting.share(tmp_path, batches=1.6, rank=1, ranks=2)  # of two ranks each has half a batch: three fit
    feed = BufferedFeed(share, 3)
    try:
        held = feed.batch(3)
        assert batches_equal(held, wanted.batch(3))
        for step in range(4, 9):
            until(lambda: len(files(tmp_path)) == 2)  # and the one in use makes three
            until(lambda done=step: here.server.status()["requests"] == before + done + 1)  # two more wait for room
            assert sorted(files(tmp_path)) == [f"step-{later:08d}.arrow" for later in (step, step + 1)]
            assert (
                1.4 * sum(files(tmp_path).values()) <= share.encode.buffer_gb * 1e9 < 2 * sum(files(tmp_path).values())
            )
            assert batches_equal(feed.batch(step), wanted.batch(step))
        assert batches_equal(held, wanted.batch(3))  # its file is long gone
    finally:
        feed.close()
    assert list(tmp_path.iterdir()) == []


def test_after_the_process_was_killed_the_next_call_starts_another_at_any_step(here: _Server, tmp_path: Path) -> None:
    wanted = EncodeHere(here.plan, load_encoder(None, RECIPE), 1, 2)
    feed = BufferedFeed(here.setting.share(tmp_path, batches=0.01, rank=1, ranks=2))  # room for less than one batch
    try:
        assert batches_equal(feed.batch(0), wanted.batch(0))
        os.kill(process_of(1).pid or 0, signal.SIGKILL)
        with pytest.raises(BufferDied, match=r"data rank 1 ended before step \d+ with status -9"):
            for step in range(1, STEPS):
                feed.batch(step)
        assert list(tmp_path.iterdir()) == []
        for step in (STEPS - 2, STEPS - 1):
            assert batches_equal(feed.batch(step), wanted.batch(step))
        assert sum(path.is_dir() for path in tmp_path.iterdir()) == 1
        with pytest.raises(IndexError, match=f"small has {STEPS} steps from 0, and a batch after them was asked for"):
            feed.batch(STEPS)
    finally:
        feed.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.effect("EncodeConfig.token_file")
def test_what_the_process_fails_of_is_raised_in_its_words(here: _Server, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("wrong")
    setting = here.setting.model_copy(update={"token_file": str(wrong)})
    place = tmp_path / "place"
    feed = BufferedFeed(setting.share(place))
    with pytest.raises(WrongToken, match="does not let us in: the token is wrong") as failed:
        feed.batch(0)
    assert "in the buffer process of data rank 0" in failed.value.__notes__[0]
    assert list(place.iterdir()) == []
    feed.close()


TRAINER = """
import multiprocessing
import sys
from pathlib import Path
from tests.training.encode.test_buffer import BufferedFeed, Setting
if __name__ == "__main__":
    setting = Setting.model_validate_json(sys.argv[1])
    feed = BufferedFeed(setting.share(Path(sys.argv[2])))
    feed.batch(0)
    print(multiprocessing.active_children()[0].pid, flush=True)
    sys.stdin.read()
    if sys.argv[3] == "forgets to close":
        sys.exit()
"""


def test_a_trainer_that_is_killed_or_forgets_to_close_leaves_nothing_behind(here: _Server, tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    places = {how: tmp_path / how for how in ("killed", "forgets to close")}
    trainers = {}
    for how, place in places.items():
        command = [sys.executable, str(script), here.setting.model_dump_json(), str(place), how]
        trainers[how] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
    try:
        pids = [int(trainer.stdout.readline()) for trainer in trainers.values()]
        assert all(list(place.glob(f"{PREFIX}*")) for place in places.values())
        trainers["killed"].kill()
        trainers["forgets to close"].stdin.close()
        assert trainers["forgets to close"].wait() == 0
        until(lambda: not any(runs(pid) for pid in pids))
        assert [list(place.iterdir()) for place in places.values()] == [[], []]
    finally:
        for trainer in trainers.values():
            trainer.kill()
            trainer.wait()
            trainer.stdin.close()
            trainer.stdout.close()


def test_what_dead_buffers_left_is_removed_and_what_living_ones_have_is_not(tmp_path: Path) -> None:
    encode = EncodeConfig(buffer_folder=str(tmp_path), buffer_gb=0.001)
    folder, lock = new_folder(encode)
    theirs = hold(folder)
    (folder / "step-00000001.arrow").write_bytes(b"batch")
    os.close(lock)  # as when the trainer is dead, and its buffer process is not yet
    second, lock = new_folder(encode)
    assert folder.exists()
    os.close(theirs)
    third, _ = new_folder(encode)
    assert not folder.exists()
    assert second.exists() and third.exists()
    remove_if_left(tmp_path / "no such folder")
    other = tmp_path / "somebody's"
    other.mkdir()
    os.close(lock)
    new_folder(encode)
    assert other.exists() and not second.exists()


def test_a_bound_beyond_the_room_there_is_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a buffer may take 1e\+09 GB, and .* GB free: make encode.buffer_gb smaller"):
        new_folder(EncodeConfig(buffer_folder=str(tmp_path), buffer_gb=1e9))
    assert list(tmp_path.iterdir()) == []
