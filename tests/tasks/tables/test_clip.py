import gc
import weakref
from pathlib import Path

import numpy as np

from tasks.tables.clip import SharedFrames
from tests.tasks.rows import clip, store


def test_a_shared_store_is_opened_once_and_let_go_with_its_pictures_after_its_last_user(tmp_path: Path) -> None:
    store(tmp_path, [np.zeros((36, 64, 3), np.uint8)] * 3, "frames/a")
    row = clip(frames_uri="frames/a")
    with SharedFrames(str(tmp_path), row, users=2) as shared:
        with shared.used():
            opened = weakref.ref(shared.store)
            assert len(shared.store.frames(0, 9)) == 3
        assert opened() is shared.store
        with shared.used():
            assert opened() is shared.store
        gc.collect()
        assert opened() is None
