import threading

import numpy as np
import pytest

from tasks.curation.denormals import LIBM, denormals_as_zero

TINY = np.full(64, 1e-40, np.float32)


@pytest.mark.skipif(LIBM is None, reason="no floating point environment that is known here")
def test_denormals_are_zero_inside_and_themselves_again_outside():
    assert (TINY * np.float32(1)).all()
    with denormals_as_zero():
        assert not (TINY * np.float32(1)).any()
    assert (TINY * np.float32(1)).all()


@pytest.mark.skipif(LIBM is None, reason="no floating point environment that is known here")
def test_other_threads_compute_as_before():
    found: list[bool] = []
    started, over = threading.Event(), threading.Event()

    def work() -> None:
        started.wait()
        found.append(bool((TINY * np.float32(1)).all()))
        over.set()

    threading.Thread(target=work).start()
    with denormals_as_zero():
        started.set()
        over.wait()
    assert found == [True]
