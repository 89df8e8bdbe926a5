"""How the ranks of a run share the work (report, section 7.4): who holds the model together, who shares a sample."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Ranks in order; groups are of consecutive ranks, so that they fall on one machine.

    Attributes:
        world: ranks in all.
        shard: ranks that hold one copy of the model together (FSDP); ``world / shard`` groups have a copy each (HSDP).
        sequence: ranks that share the tokens of one sample (Ulysses); ``world / sequence`` ranks of data.

    ValueError where a group does not divide the world, or groups of the two kinds cross each other.
    """

    world: int = 1
    shard: int = 1
    sequence: int = 1

    def __post_init__(self) -> None:
        for name, size in (("shard", self.shard), ("sequence", self.sequence)):
            if size < 1 or self.world % size:
                raise ValueError(f"{name} groups of {size} ranks do not divide the {self.world} ranks there are")
        if max(self.shard, self.sequence) % min(self.shard, self.sequence):
            raise ValueError(f"shard groups of {self.shard} and sequence groups of {self.sequence} ranks would cross")

    @property
    def replicas(self) -> int:
        """Copies of the model."""
        return self.world // self.shard

    @property
    def data_ranks(self) -> int:
        """Groups of ranks that train on samples of their own."""
        return self.world // self.sequence

    def data_rank(self, rank: int) -> int:
        return rank // self.sequence
