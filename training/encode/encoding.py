"""What encodes a run's clips and prompts, found before its first step: this process, or encode servers.

All ranks must be fed by the same weights. So each says what encodes for it, and they compare.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from training.data.plan import BatchPlan
from training.distributed.parallel import Parallel
from training.encode.buffer import BufferedFeed, Share
from training.encode.encoder import EncodeHere, Encoder, Feed, load_encoder
from training.encode.prompts import served_text
from training.encode.servers import servers_of
from training.encode.status import served_encoder
from training.run import TrainingRun

FINGERPRINT_BYTES = 64  # the most that is compared

Embed = Callable[[str], tuple[Tensor, Tensor]]  # a prompt's tokens [S, width] and pooled text [width]


@dataclass(frozen=True)
class Encoding:
    """What encodes, as one rank has it.

    Attributes:
        fingerprint: of the weights, the same on all ranks: a fact of the run.
        embed: encodes prompts of sample videos, on rank 0; None elsewhere.
        encoder: what this process encodes its own batches with; None where servers do, or another rank of its group.
    """

    fingerprint: str
    embed: Embed | None
    encoder: Encoder | None

    def feed(self, run: TrainingRun, plan: BatchPlan, parallel: Parallel, first: int) -> Feed | None:
        """The feed of this rank from step ``first`` on; None where another rank of its sequence group has it."""
        if not parallel.leader:
            return None
        rank, ranks = parallel.data_rank, parallel.layout.data_ranks
        if self.encoder is not None:
            return EncodeHere(plan, self.encoder, rank, ranks)
        return BufferedFeed(Share(run.manifests, plan.job, run.encode, self.fingerprint, rank, ranks), first)


def open_encoding(run: TrainingRun, parallel: Parallel, manifest: str) -> Encoding:
    """Load this rank's encoder, or ask the servers what they encode with; all ranks call it and agree.

    Where there are servers no rank loads a VAE or a text encoder: they embed the prompts too.

    Args:
        manifest: fingerprint of the run's manifests.

    Raises:
        ValueError: ranks or servers encode with other weights, or servers encode something else than the run wants.
        NoServer: no server answered in ``encode.patience_s``.
        FileNotFoundError: the checkpoint lacks a part.
    """
    if run.encode.servers:
        said = served_encoder(run, manifest) if parallel.leader else None
        fingerprint = agreed(said, parallel)
        embed = partial(served_text, servers_of(run.encode), fingerprint, run.encode.patience_s)
        return Encoding(fingerprint, embed if parallel.rank == 0 else None, None)
    encoder = load_encoder(run.checkpoint, run.recipe, str(parallel.device)) if parallel.leader else None
    fingerprint = agreed(encoder.fingerprint if encoder else None, parallel)
    return Encoding(fingerprint, encoder.embed if encoder and parallel.rank == 0 else None, encoder)


def agreed(said: str | None, parallel: Parallel) -> str:
    """The fingerprint that the ranks say, those that have one. All call it. ValueError on all: they say several."""
    own = torch.zeros(FINGERPRINT_BYTES, dtype=torch.uint8)
    letters = (said or "").encode()[:FINGERPRINT_BYTES]
    own[: len(letters)] = torch.tensor(list(letters), dtype=torch.uint8)
    every = [torch.zeros_like(own) for _ in range(parallel.layout.world)]
    if parallel.cpu_group is None:
        every = [own]
    else:
        dist.all_gather(every, own, group=parallel.cpu_group)
    ranks: dict[str, list[str]] = {}
    for rank, each in enumerate(every):
        if fingerprint := bytes(each.tolist()).rstrip(b"\0").decode(errors="replace"):
            ranks.setdefault(fingerprint, []).append(str(rank))
    if len(ranks) != 1:
        told = "; ".join(f"{fingerprint} feeds rank {', '.join(numbers)}" for fingerprint, numbers in ranks.items())
        raise ValueError(f"ranks would train on what other weights or other kinds of device encode: {told}")
    return next(iter(ranks))
