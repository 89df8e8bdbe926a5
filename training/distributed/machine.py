"""What the machine decides about a run, as opposed to the recipe. ``prepare`` applies what concerns the model."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.recompute import Mode, Recompute

Device = Literal["cpu", "cuda", "npu"]
Dtype = Literal["float32", "bfloat16"]
Positive = Annotated[int, Field(gt=0)]


class MachineConfig(BaseModel):
    """What the machine decides. None of it changes what is learned, beyond the order of sums."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device: Device = Field("cpu", description="Of every rank; chooses gloo, nccl or hccl too")
    shard: Positive = Field(1, description="Ranks that hold one copy of model and optimiser together (FSDP)")
    sequence: Positive = Field(1, description="Ranks that share the tokens of one sample (Ulysses)")
    dtype: Dtype = Field("float32", description="Of computing; weights, sums stay float32")
    recompute: Mode = Field("none", description="What the backward pass computes again")
    recompute_every: Positive = Field(1, description="Of so many blocks one is computed again; 1: every block")
    memory_gb: float | None = Field(None, gt=0, description="Of a device, for the largest batch; empty: as it reports")
    micro_batch: Positive | None = Field(None, description="Samples at once on a device; empty: what fits, by bucket")
    peak_tflops: float | None = Field(None, gt=0, description="Of a device in this dtype, for MFU; empty: no MFU")

    @property
    def recomputation(self) -> Recompute:
        """The policy for the model's blocks."""
        return Recompute(self.recompute, self.recompute_every)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _ = self.recomputation  # says what is wrong with it
        return self
