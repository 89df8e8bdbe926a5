"""One batch at a time on each device, and one model kept there."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import torch

from tasks.generation.model import Checkpoint, free_device, loaded
from tests.models.tiny_text_to_video import write_lite


def test_batches_side_by_side_have_a_device_each():
    both = Barrier(2, timeout=10)

    def batch(_):
        with free_device(["first", "second"]) as device:
            both.wait()
            return device

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(batch, range(2))) == {"first", "second"}


def test_a_batch_waits_until_a_device_is_free_also_where_the_one_before_failed():
    taken = Event()

    def batch():
        with free_device(["only"]) as device:
            taken.set()
            return device

    with ThreadPoolExecutor(1) as pool:
        try:
            with free_device(["only"]):
                waiting = pool.submit(batch)
                assert not taken.wait(0.1)
                raise RuntimeError("lost")
        except RuntimeError:
            assert waiting.result(10) == "only"


def test_a_model_stays_on_its_device_until_another_is_asked_for(tmp_path):
    write_lite(tmp_path)
    options = {"codec": "lite", "text": "lite", "dtype": torch.float32, "codec_memory": None}
    first = loaded(Checkpoint(str(tmp_path), "1"), "cpu", **options)
    assert loaded(Checkpoint(str(tmp_path), "1"), "cpu", **options) is first
    assert loaded(Checkpoint(str(tmp_path), "2"), "cpu", **options) is not first
    assert loaded(Checkpoint(str(tmp_path), "1"), "cpu", **options) is not first
