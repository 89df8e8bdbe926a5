"""What ranks tell each other in words: a failure, so that all stop for the reason of the one that failed; or a name."""

from collections.abc import Callable

import torch
import torch.distributed as dist


def shared_failure(failure: BaseException | str | None, group: dist.ProcessGroup | None) -> str | None:
    """The failure of the lowest rank that has one, in words that start with its number; None where no rank failed.

    All ranks of ``group`` call it, and none returns before all have. One process, without a group, has its own answer.
    """
    words = None if failure is None else failure if isinstance(failure, str) else repr(failure)
    if group is None:
        return words
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    first = torch.tensor([world if words is None else rank])
    dist.all_reduce(first, dist.ReduceOp.MIN, group=group)
    source = int(first.item())
    if source == world:
        return None
    said = f"rank {source}: {words}".encode() if rank == source else b""
    length = torch.tensor([len(said)])
    dist.broadcast(length, dist.get_global_rank(group, source), group=group)
    return _broadcast(said, int(length.item()), dist.get_global_rank(group, source), group)


def from_first_rank(make: Callable[[], str], group: dist.ProcessGroup | None) -> str:
    """What ``make`` returns on rank 0 of ``group``, on all of its ranks; the others do not call it.

    What ``make`` raises is raised on rank 0; with its words the others raise a ValueError, where it was one or a file
    was missing, so that it would be so again; or else a RuntimeError.
    """
    first = group is None or dist.get_rank(group) == 0
    said, failure = "", None
    if first:
        try:
            said = make()
        except Exception as error:
            failure = error
    if group is None:
        if failure is not None:
            raise failure
        return said
    content = said if failure is None else str(failure)
    lasting = isinstance(failure, ValueError | FileNotFoundError)
    header = torch.tensor([len(content.encode()), failure is not None, lasting])
    source = dist.get_global_rank(group, 0)
    dist.broadcast(header, source, group=group)
    length, failed, lasting = header.tolist()
    words = _broadcast(content.encode(), length, source, group)
    if failure is not None:
        raise failure
    if failed:
        raise ValueError(words) if lasting else RuntimeError(f"rank 0: {words}")
    return words


def _broadcast(said: bytes, length: int, source: int, group: dist.ProcessGroup) -> str:
    letters = torch.zeros(length, dtype=torch.uint8)
    if dist.get_rank() == source and length:
        letters = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    dist.broadcast(letters, source, group=group)
    return bytes(letters.tolist()).decode()
