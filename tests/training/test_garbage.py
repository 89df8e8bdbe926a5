"""While a run trains, Python collects garbage at the steps at which all ranks do, and at no other time."""

import gc

from training.garbage import EVERY, collect_after, collected_by_count


def test_garbage_is_collected_at_its_steps_and_at_no_other_time() -> None:
    collections: list[int] = []

    def note(phase: str, _: object) -> None:
        if phase == "start":
            collections.append(step)

    with collected_by_count():
        gc.callbacks.append(note)
        try:
            for step in range(1, 2 * EVERY + 1):
                waste = [[] for _ in range(2000)]  # more than a collection waits for
                waste[0].append(waste)
                collect_after(step)
        finally:
            gc.callbacks.remove(note)
        assert gc.get_freeze_count() > 0
    assert collections == [EVERY, 2 * EVERY]
    assert gc.isenabled() and gc.get_freeze_count() == 0
