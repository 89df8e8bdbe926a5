"""All ranks stop for the reason of the one that failed, in its words."""

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from training.distributed.agreement import from_first_rank, shared_failure

WORDS = "OSError(28, 'Kein Platz für Ümläute')"


def in_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    group = dist.group.WORLD
    assert shared_failure(None, group) is None
    for failed in ({2}, {1, 2}, {0}):
        said = shared_failure(WORDS if rank in failed else None, group)
        assert said == f"rank {min(failed)}: {WORDS}"
    called = []
    assert from_first_rank(lambda: (called.append(1), "naïve")[1], group) == "naïve"
    assert len(called) == (rank == 0)
    assert from_first_rank(lambda: "", group) == ""
    for kind, wanted in ((ValueError, ValueError), (OSError, OSError if rank == 0 else RuntimeError)):
        with pytest.raises(wanted, match="of another run"):
            from_first_rank(lambda kind=kind: fail(kind), group)
    dist.destroy_process_group()


def fail(kind: type[Exception]) -> Any:
    raise kind("of another run")


def test_ranks_hear_the_words_of_the_first_that_failed(tmp_path: Path) -> None:
    mp.spawn(in_rank, (str(tmp_path),), nprocs=3)


def test_one_process_has_its_own_answer() -> None:
    assert shared_failure(None, None) is None
    assert shared_failure(ValueError("no"), None) == "ValueError('no')"
    assert from_first_rank(lambda: "here", None) == "here"
    with pytest.raises(KeyError):
        from_first_rank(lambda: {}["missing"], None)
