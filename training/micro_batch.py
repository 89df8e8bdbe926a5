"""How many samples a device takes at once, of each cost class."""

from models.transformer import TransformerConfig
from training.batches import BatchPlan
from training.buckets import shape_of
from training.parallel import Parallel
from training.run import TrainingRun


def samples_at_once(run: TrainingRun, plan: BatchPlan, config: TransformerConfig, parallel: Parallel) -> dict[int, int]:
    frames = {shape_of(bucket, run.recipe).frames for bucket in plan.manifest.rows}
    return {count: run.machine.micro_batch or run.recipe.bucket_run for count in frames}
